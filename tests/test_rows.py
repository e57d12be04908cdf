"""Rows of every shape: conversations, several videos and images, frames in files, and parts of videos."""

from __future__ import annotations

import json
import pathlib

import pytest

from pipelines.checks.places import ignored_lines
from vidalign import files
from vidalign.data.reading import DataRow, read_rows
from vidalign.data.rows import parse_row, to_example
from vidalign.data.validate import validate
from vidalign.records import Turn
from vidalign.types import Example, PreferencePair, stable_hash
from vidalign.video import naming
from vidalign.video.naming import Visual, name_of, visual_of

ROW = {"id": "a", "question": "Which way?", "answer": "left"}
ROOT = pathlib.Path("/data")
TURNS = [{"role": "user", "content": "What moves?"}, {"role": "assistant", "content": "A circle."}]


def example_of(root: pathlib.Path = ROOT, **fields) -> Example:
    row, errors = parse_row({**ROW, **fields})
    assert row is not None, errors
    assert not errors
    return to_example(row, root)


def test_a_plain_row_is_stored_and_hashed_as_ever():
    example = example_of(video="v.mp4")
    assert example.to_row() == {
        "id": "a",
        "video": "/data/v.mp4",
        "question": "Which way?",
        "answer": "left",
        "options": (),
        "category": "",
        "caption": "",
    }
    assert stable_hash(example.to_row()) == "7818f4a24ee24459"
    assert example.context.is_plain
    assert example.context.visuals == ("/data/v.mp4",)


@pytest.mark.parametrize(
    ("fields", "videos", "images"),
    [
        ({"video": "a b#1.mp4", "clip": {"start": 2, "end": 5.5}}, ("file:///data/a%20b%231.mp4#t=2,5.5",), ()),
        ({"video": "s3://b/v.mp4", "clip": {"end": 3}}, ("s3://b/v.mp4#t=0,3",), ()),
        ({"video": "v.mp4", "clip": {"start": 3}}, ("file:///data/v.mp4#t=3",), ()),
        ({"video": ["f1.jpg", "s3://b/f2.jpg"], "fps": 2}, ('frames:["file:///data/f1.jpg", "s3://b/f2.jpg"]#fps=2',), ()),
        (
            {"videos": ["v.mp4", {"video": ["f.jpg"], "fps": 0.5, "clip": {"start": 1, "end": 2}}]},
            ("/data/v.mp4", 'frames:["file:///data/f.jpg"]#fps=0.5&t=1,2'),
            (),
        ),
        ({"video": "v.mp4", "images": ["i.png"]}, ("/data/v.mp4",), ("file:///data/i.png#image",)),
        ({"images": ["i.png", "/x/j.png"]}, (), ("file:///data/i.png#image", "file:///x/j.png#image")),
    ],
)
def test_what_a_row_shows_has_names(fields, videos, images):
    context = example_of(**fields).context
    assert context.videos == videos
    assert context.images == images
    assert [name_of(visual_of(name)) for name in context.visuals] == list(context.visuals)


def test_a_folder_needs_fps_and_a_file_ignores_it(tmp_path):
    (tmp_path / "frames").mkdir()
    (tmp_path / "v.mp4").write_bytes(b"x")
    assert example_of(tmp_path, video="frames", fps=2).video == f"{(tmp_path / 'frames').as_uri()}#fps=2"
    assert example_of(tmp_path, video="v.mp4", fps=29.97).video == str(tmp_path / "v.mp4")
    assert example_of(tmp_path, video="frames").video == str(tmp_path / "frames")
    assert example_of(tmp_path, video="gone", fps=2).video.endswith("/gone#fps=2"), "a name does not change with the disk"
    assert example_of(tmp_path, video="gone.mp4", fps=2).video == str(tmp_path / "gone.mp4")
    assert example_of(tmp_path, video="https://host/v", fps=2).video == "https://host/v"


@pytest.mark.parametrize(
    "name",
    ["a#t=1,2", "/a/b#fps=2", "s3://b/a.mp4#x", "s3://b/a#fps=0", "frames:[1]#fps=2", "frames:[://#fps=2", "s3://b/a#"],
)
def test_other_texts_with_a_hash_are_names_of_whole_videos(name):
    assert visual_of(name) == Visual(kind="video", uris=(name,))
    assert naming.split(name) == (name, "")


def test_natural_order():
    names = ["frame_10.jpg", "frame_2.jpg", "Frame_1.jpg", "frame_02.jpg", "a.jpg"]
    assert sorted(names, key=naming.natural) == ["a.jpg", "Frame_1.jpg", "frame_02.jpg", "frame_2.jpg", "frame_10.jpg"]


def test_turns_and_places_of_what_is_shown():
    example = example_of(video="v.mp4", system="Be brief.", turns=TURNS)
    assert example.turns == (Turn(role="user", content="What moves?"), Turn(role="assistant", content="A circle."))
    assert example.context.system == "Be brief."
    assert example_of(video="v.mp4", question="<video>\nWhich way?") == example_of(video="v.mp4"), "where it stands anyway"
    assert example_of(videos=["a", "b"], question="<video> <video> Which?").question == "Which?"
    assert example_of(videos=["a", "b"], question="Is <video> before <video>?").question == "Is <video> before <video>?"
    assert example_of(video="v", images=["i"], question="<image><video>Which?").question == "<image><video>Which?"
    first = [{**TURNS[0], "content": "<video>What moves?"}, TURNS[1]]
    assert example_of(video="v.mp4", turns=first).turns[0].content == "What moves?"
    assert example_of(video="v.mp4", turns=TURNS, question="<video>Which?").question == "<video>Which?"


def test_a_row_of_names_is_the_row_that_they_name():
    """As a run's own tables have them."""
    row = {"videos": ["v.mp4", {"video": ["f.jpg"], "fps": 2, "clip": {"start": 1}}], "images": ["i.png"], "turns": TURNS}
    example = example_of(**row, question="<image> then <video> or <video>?")
    stored = example.to_row()
    assert stored["video"] == stored["videos"][0]
    again = {name: value for name, value in stored.items() if name in ("video", "videos", "images", "turns", "question")}
    assert example_of(**json.loads(json.dumps(again))) == example
    for fields in ({"video": ["f.jpg"], "fps": 2}, {"video": "v.mp4", "clip": {"end": 2}}):
        assert example_of(video=example_of(**fields).video) == example_of(**fields)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "video: is missing or null; give the path"),
        ({"images": []}, "video: is missing or null"),
        ({"video": "v", "videos": ["w"]}, "videos: stands beside 'video'"),
        ({"videos": ["w"], "clip": {"start": 1}}, "clip: stands beside 'videos'"),
        ({"video": ["f.jpg"]}, "fps: is missing; a list of frames needs it"),
        ({"videos": [["f.jpg"]]}, "videos[0]: is a list of frames without 'fps'"),
        ({"videos": [{"video": ["f.jpg"]}]}, "videos[0].fps: is missing"),
        ({"video": "v", "fps": 0}, "fps: input should be greater than 0, got 0; write how many frames"),
        ({"video": "v", "fps": "2"}, "fps: input should be a valid number, got '2'"),
        ({"video": "v", "clip": {"start": 3, "end": 2}}, "clip: ends at 2 s, and begins at 3 s"),
        ({"video": "v", "clip": {"start": 3, "end": 3.0000001}}, "clip: ends at 3 s, and begins at 3 s"),
        ({"video": "v", "rejected_video": "./v"}, "rejected_video: is the video of the row itself"),
        ({"video": "d/../v", "rejected_video": {"video": "v"}}, "rejected_video: is the video of the row itself"),
        ({"video": "v", "question": "Which\ufdd0?"}, "question: holds a character that Unicode reserves for programs"),
        ({"video": "v", "answer": "\ufdd1"}, "answer: holds a character that Unicode reserves for programs"),
        ({"video": "v", "clip": {"start": -3}}, "clip.start: input should be greater than or equal to 0, got -3"),
        ({"video": "v", "clip": {"begin": 3}}, "clip.begin: extra inputs are not permitted"),
        ({"video": "s3://b/v#t=1,2", "clip": {"start": 1}}, "clip: stands beside the bounds in the video's uri"),
        ({"video": ["f.jpg", 3], "fps": 2}, "video[1]: input should be a valid string, got 3"),
        ({"videos": ["v", {"video": "w", "x": 1}]}, "videos[1].x: extra inputs"),
        ({"video": "v", "turns": TURNS[:1]}, "turns: have the roles user; begin with the user"),
        ({"video": "v", "turns": [*TURNS, *TURNS[::-1]]}, "turns: have the roles user, assistant, assistant, user"),
        (
            {"video": "v", "turns": [{"role": "system", "content": "x"}]},
            "turns[0].role: input should be 'user' or 'assistant'",
        ),
        ({"video": "v", "turns": [{"role": "user", "content": " "}]}, "turns[0].content: is empty"),
        ({"video": "v", "turns": [TURNS[0], {**TURNS[1], "content": "<video>"}]}, "turns[1]: holds 1 literal tag (<video>)"),
        ({"video": "v", "system": "<image>"}, "system: holds 1 literal tag (<image>)"),
        ({"video": "v", "question": "<image> Q?"}, "the texts of the user hold 0 literal <video> for 1 video"),
        (
            {"video": "v", "images": ["i"], "question": "<image> Q?"},
            "question: the texts of the user hold 0 literal <video>",
        ),
        ({"video": "v", "question": "<video>"}, "question: is empty but for the places"),
        ({"video": "v", "question": "<|video_pad|> Q?"}, "question: holds the special token"),
    ],
)
def test_each_rule_of_a_shape(fields, says):
    _, errors = parse_row({**ROW, **fields})
    assert errors
    assert says in str(errors[0])


def test_parts_of_a_video_are_different_questions_and_the_same_video(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"x")
    rows = [{**ROW, "id": str(n), "video": "v.mp4", "clip": {"start": n, "end": n + 2}} for n in range(2)]
    rows += [{**ROW, "id": "t", "video": "v.mp4", "turns": TURNS}, {**ROW, "id": "s", "video": "v.mp4", "system": "Brief."}]
    files.write_text_atomic(tmp_path / "d.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    assert [row.example.id for row in read_rows(tmp_path / "d.jsonl")] == ["0", "1", "t", "s"]
    report = validate([tmp_path / "d.jsonl"])
    assert not report.errors
    assert list(report.splits[0].videos) == [str(tmp_path / "v.mp4")]


def test_tables_keep_every_shape(tmp_path):
    plain = example_of(video="v.mp4")
    rich = example_of(videos=["a", "b"], images=["i"], system="Brief.", turns=TURNS)
    files.write_table(tmp_path / "t.parquet", [plain, rich])
    assert files.read_table(tmp_path / "t.parquet", Example) == [plain, rich]
    shown = {name: getattr(rich, name) for name in ("video", "videos", "images", "system", "turns", "question", "answer")}
    pair = PreferencePair(id="p", example_id="a", chosen="x", rejected="y", **shown)
    files.write_table(tmp_path / "p.parquet", [pair])
    [back] = files.read_table(tmp_path / "p.parquet", PreferencePair)
    assert back.context == rich.context


def test_the_example_rows_of_the_documentation_are_right():
    page = (pathlib.Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    lines = page.partition("One row of each kind:")[2].split("```")[1].removeprefix("json\n").splitlines()
    assert len(lines) == 8
    for line in lines:
        row, errors = parse_row(json.loads(line))
        assert not errors, line
        assert not row.model_extra


def test_a_dry_run_lists_the_fields_that_nothing_reads():
    """ "choices" in the place of "options" would leave the policy without them."""
    fields = {"id": "a", "video": "a.mp4", "question": "Q?", "answer": "left"}
    rows = [
        DataRow(to_example(row, pathlib.Path()), row, f"t:{number}")
        for number, more in enumerate(
            ({"choices": ["left", "right"]}, {"choices": [], "start": 2}, {"options": ["left"]}), 1
        )
        if (row := parse_row({**fields, **more})[0]) is not None
    ]
    assert ignored_lines(rows) == ["ignored: fields that are not known: 'choices' (2 rows), 'start' (1 row)"]
    assert ignored_lines(rows[2:]) == []
