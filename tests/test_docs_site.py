"""The pages of the site: all of them are in it, links lead somewhere, and what they quote of code, options and messages is there."""

import ast
import importlib.util
import re

import pytest
import yaml
from conftest import ROOT

import vidalign
from vidalign.config.explaining import all_keys
from vidalign.config.recipes import RECIPES
from vidalign.config.run import RunConfig
from vidalign.data.rows import parse_row
from vidalign.learning.objectives import OBJECTIVES

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


hooks = module(DOCS / "site_hooks.py")


def in_navigation() -> list[str]:
    return [
        page for part in SITE["nav"] for pages in part.values() for page in [*map(dict.popitem, pages)] for page in page[1:]
    ]


def test_every_page_is_in_the_navigation_once():
    expected = [path.name for path in PAGES] + [f"project/{name}" for name in hooks.PROJECT]
    assert sorted(in_navigation()) == sorted(expected)
    assert all((ROOT / name).is_file() for name in hooks.PROJECT)


def slug(heading: str) -> str:
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", text).strip())


def anchors(path) -> set[str]:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_every_link_to_a_heading_finds_it(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", text):
        place = (page.parent / target) if target else page
        assert anchor in anchors(place), f"{page.name}: {target}#{anchor}"


def test_links_out_of_the_documents_become_links_of_the_site_or_names_of_files():
    known = {"methods.md", "project/CONTRIBUTING.md"}
    for page, given, made in (
        ("faq.md", "[m](methods.md#recipes)", "[m](methods.md#recipes)"),
        ("api.md", "[c](../CONTRIBUTING.md)", "[c](project/CONTRIBUTING.md)"),
        ("api.md", "[`run`](../pipelines/cli.py)", "`run`"),
        ("api.md", "[the code](../pipelines/cli.py)", "the code (`pipelines/cli.py`)"),
        ("project/CONTRIBUTING.md", "[m](docs/methods.md)", "[m](../methods.md)"),
        ("api.md", "![p](pictures/run.svg) [x](https://a.b/c)", "![p](pictures/run.svg) [x](https://a.b/c)"),
    ):
        assert hooks.rewritten(given, page, known) == made


def test_the_pictures_are_those_that_the_script_draws():
    draw = module(DOCS / "pictures" / "draw.py")
    for name, picture in draw.PICTURES.items():
        assert (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8") == draw.drawn(*picture), (
            "run docs/pictures/draw.py"
        )
    assert {path.stem for path in (DOCS / "pictures").glob("*.svg")} == set(draw.PICTURES)


# What the pages quote


def messages() -> str:
    """Every text of the code, with "…" for what is filled in, one a line."""
    found = []
    for package in ("vidalign", "cluster", "actors", "serving", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
    return "\n".join(text.replace("\n", " ") for text in found)


def test_every_message_that_is_explained_is_one_that_the_code_says():
    rows = re.findall(r"^\| (`.+?`) \|", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 30
    said = messages().split("\n")
    for quote in quoted:
        assert any(in_order(quote.split("…"), line) for line in said), quote


def in_order(parts: list[str], line: str) -> bool:
    """Whether a line has these texts one after the other, with anything between them."""
    place = 0
    for part in parts:
        if (found := line.find(part, place)) < 0:
            return False
        place = found + len(part)
    return True


def test_what_a_message_says_is_found_in_its_order():
    assert in_order(["a", "c", ""], "abcd")
    assert not in_order(["c", "a"], "abcd")
    assert not in_order(["ab", "b"], "abcd")


def test_every_option_that_a_page_names_exists():
    keys = set(all_keys(RunConfig)) | {f"recipe.{name}" for kind in RECIPES.values() for name in kind.model_fields}
    keys |= {key.rpartition(".")[0] for key in set(keys)} | {"objective.params.sft_weight"}
    sections = "|".join(sorted({key.partition(".")[0] for key in keys if "." in key}))
    for name in ("coming_from", "own_model", "recipes", "faq", "troubleshooting", "getting_started", "tracking"):
        text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        for key in re.findall(rf"`(?:[^`]*\s)?((?:{sections})\.[a-z_.]+[a-z_])(?![a-z_(]|:\w)", text):
            known = any(key == each or each.startswith(f"{key}.") for each in keys)
            assert known or key.endswith((".md", ".py", ".yaml", ".safetensors")), f"{name}.md: {key}"


def test_every_objective_is_in_the_table_of_recipes_and_objectives():
    table = (DOCS / "recipes.md").read_text(encoding="utf-8").split("[1] The words")[0]
    assert {name for name in OBJECTIVES if f"`{name}`" not in table} == set()
    for name in RECIPES:
        assert f"\n## {name}\n" in (DOCS / "recipes.md").read_text(encoding="utf-8")


def test_the_complete_rows_keep_the_rules():
    import json

    (block,) = re.findall(r"```json\n(.*?)```", (DOCS / "own_model.md").read_text(encoding="utf-8"), re.DOTALL)
    rows = [json.loads(line) for line in block.splitlines()]
    assert len(rows) >= 5
    for row in rows:
        assert not parse_row(row)[1], row


def test_the_page_of_the_api_names_all_of_it():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert {name for name in vidalign.__all__ if f"vidalign.{name}" not in page} == set()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    compile(script, "api.md", "exec")
    called = {
        node.attr
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "vidalign"
    }
    assert called <= set(vidalign.__all__)
