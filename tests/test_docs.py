"""What the documents name is there: files, tests and configuration keys do not outlive their code."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]
_PATH = re.compile(r"`((?:vidalign|cluster|actors|serving|pipelines|tests|bench|examples|configs|docs|deploy)/[\w./*-]+)")
_TEST = re.compile(r"`(tests/\w+\.py)::(\w+)`")
_LINK = re.compile(r"\]\(([^)#:]+)\)")


def missing_paths(text: str) -> set[str]:
    """Paths of the project between backticks that nothing matches; "*" stands for anything."""
    return {path for path in _PATH.findall(text) if not list(ROOT.glob(path.rstrip("/").rstrip(".")))}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_and_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not missing_paths(text)
    folder = (ROOT / page).parent
    assert not {link for link in _LINK.findall(text) if not (folder / link).exists()}


def test_every_test_that_a_page_names_exists():
    named = [found for page in PAGES for found in _TEST.findall((ROOT / page).read_text(encoding="utf-8"))]
    assert len(named) >= 5  # one for each thing that CONTRIBUTING.md says how to add
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text(encoding="utf-8"), (path, name)


def test_the_rooms_of_the_picture_are_those_of_the_code():
    picture = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("```")[1]
    for room in (path.parent for path in (ROOT / "vidalign").glob("*/__init__.py")):
        assert re.search(rf"^\s+{room.name}\s", picture, re.MULTILINE), room.name
    for package in ("pipelines", "actors", "serving", "cluster", "vidalign"):
        assert package in picture


def test_these_checks_can_fail():
    assert missing_paths("see `vidalign/nothing.py` and `vidalign/types.py`") == {"vidalign/nothing.py"}
