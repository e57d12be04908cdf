"""What the documents name is there: files, tests and configuration keys do not outlive their code."""

import json
import pathlib
import re
import shlex

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_video

from pipelines.cli import main
from vidalign import files
from vidalign.data.formats import IMPORTERS
from vidalign.data.formats.fields import Notes
from vidalign.data.rows import parse_row
from vidalign.types import PreferencePair

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


# --- docs/data.md: every command and every row in it works ---

_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
ASKED = {"video": "v.mp4", "question": "Which way?"}
OURS = {"id": "a", **ASKED, "answer": "Left.", "chosen": "To the left.", "rejected": "To the right."}


def blocks(kind: str) -> list[str]:
    return [text for name, text in _BLOCK.findall((ROOT / "docs/data.md").read_text(encoding="utf-8")) if name == kind]


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """A folder with everything that the page's commands name."""
    monkeypatch.chdir(tmp_path)
    for number, folder in enumerate(("mine", "theirs", "theirs/media", "runs/a", "theirs/frames")):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        shade = np.arange(16)[:, None, None, None] * (number + 1) + np.arange(32 * 32).reshape(32, 32)[None, :, :, None] % (
            50 + number
        )
        write_video(pathlib.Path(folder) / "v.mp4", np.broadcast_to(shade % 256, (16, 32, 32, 3)).astype(np.uint8))

    def write(name: str, *rows: dict) -> None:
        pathlib.Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    example = {"id": "b", **ASKED, "answer": "Left."}
    other = {**example, "video": "../theirs/v.mp4"}
    write("mine/train.jsonl", {**example, "id": "t"})
    write("mine/heldout.jsonl", {**other, "id": "h"})
    write("mine/probe.jsonl", {**other, "video": "../theirs/media/v.mp4", "id": "p"})
    write("mine/mixed.jsonl", OURS, {**example, "question": "Where?"})
    write("theirs/hound.jsonl", {"id": "1", "video": "frames", "prompt": "<video>\nWhat?", "answer": "A circle."})
    sides = {side: {"from": "gpt", "value": OURS[side]} for side in ("chosen", "rejected")}
    asked = [{"from": "human", "value": "<video>Which way?"}]
    write("theirs/dpo.json", {"conversations": asked, "videos": ["v.mp4"], **sides})
    pq.write_table(pa.Table.from_pylist([{"prompt": "Which way?", **OURS}]), "theirs/pairs.parquet")
    pair = PreferencePair(
        **{name: value for name, value in OURS.items() if name != "video"},
        example_id="e",
        video=str(tmp_path / "runs/a/v.mp4"),
    )
    files.write_table(tmp_path / "runs/a/rounds/0/pairs/pairs.parquet", [pair])
    return tmp_path


def test_every_command_of_the_page_on_data_works(data_folder, capsys):
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    for action in ("import", "export", "convert", "validate"):
        assert any(f" data {action} " in command for command in commands)
    for command in commands:
        assert command.startswith("vidalign data "), command
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)


def test_every_row_of_the_page_on_data_keeps_the_rules():
    rows = [json.loads(line) for block in blocks("json") for line in block.splitlines()]
    assert len(rows) >= 8
    for row in rows:
        assert not parse_row(row)[1], row


def test_every_foreign_row_of_the_page_on_data_is_the_same_pair():
    expected = {**ASKED, "id": "1", "answer": OURS["chosen"], "chosen": OURS["chosen"], "rejected": OURS["rejected"]}
    (block,) = blocks("jsonl")
    for (name, to_row), line in zip(IMPORTERS.items(), block.splitlines(), strict=True):
        left = json.loads(line)
        made = to_row(left, Notes())
        more = (
            {"chosen_phrases": [[7, 11]], "rejected_phrases": [[7, 12]]}
            if name == "rrpo"
            else {"chosen_score": 5, "rejected_score": 1}
        )
        assert made == expected | more, name
        assert not left, name
