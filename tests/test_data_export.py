"""What is exported is imported again as the same rows, and other projects' own code reads it."""

import json
import pathlib

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from vidalign.data.formats import exporter, importer, llamafactory
from vidalign.data.formats.convert import import_file
from vidalign.data.formats.export import export_file
from vidalign.data.formats.exporting import more_columns
from vidalign.data.formats.fields import Notes
from vidalign.data.rows import ExampleRow, PreferenceRow, parse_row
from vidalign.errors import DataError, RowError

FORMATS = ["trl", "llamafactory", "ms-swift", "nemo-rl"]
ROW = {"id": "a", "video": "v.mp4", "question": "Which way?", "answer": "To the left."}
PAIR = {**ROW, "chosen": "To the left.", "rejected": "To the right."}
TURNS = [{"role": "user", "content": "What moves?"}, {"role": "assistant", "content": "A circle."}]


def write(path: pathlib.Path, *rows: dict) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- there and back ---

WORDS = st.sampled_from(
    ["left", "To the right.", "rot und blau", "向左", "a\nb", "2 + 2 = [4]", '"quoted"', "{x}", "<b>", "12"]
)
SHOWN = st.sampled_from(
    [
        {"video": "v.mp4"},
        {"video": "s3://bucket/v.mp4"},
        {"video": ["f/1.jpg", "f/2.jpg"], "fps": 2.0},
        {"videos": ["v.mp4", "w.mp4"]},
        {"videos": ["v.mp4", {"video": ["1.png"], "fps": 0.5}]},
        {"video": "v.mp4", "images": ["i.jpg"]},
        {
            "videos": ["v.mp4", {"video": ["1.png"], "fps": 4.0}, {"video": ["2.png"], "fps": 1.0}],
            "images": ["i.jpg", "j.jpg"],
        },
        {"images": ["i.jpg"]},
    ]
)


@st.composite
def our_rows(draw) -> dict:
    """A row of vidalign, as an import would write it."""
    row = {"id": draw(st.sampled_from(["a", "7", "é"])), **draw(SHOWN), "question": draw(WORDS), "answer": draw(WORDS)}
    places = ["<video>"] * (len(row.get("videos", ())) + ("video" in row)) + ["<image>"] * len(row.get("images", ()))
    if draw(st.booleans()):
        row["system"] = draw(WORDS)
    if draw(st.booleans()):
        row["turns"] = [{"role": role, "content": draw(WORDS)} for role in ("user", "assistant")] * draw(st.integers(1, 2))
    if draw(st.booleans()):  # not where they stand by default
        row["question"] = f"{row['question']} {' and '.join(draw(st.permutations(places)))}?"
    for name, values in (
        ("category", WORDS),
        ("caption", WORDS),
        ("options", st.just(["other", row["answer"]])),
    ):
        if draw(st.booleans()):
            row[name] = draw(values)
    if draw(st.booleans()):
        chosen, rejected = draw(st.lists(WORDS, min_size=2, max_size=2, unique=True))
        row |= {"chosen": chosen, "rejected": rejected}
        if draw(st.booleans()):
            row |= {"chosen_score": draw(st.sampled_from([5, 4.5])), "rejected_score": -1.25, "chosen_phrases": [[0, 2]]}
        if draw(st.booleans()):
            row |= {"chosen_win_rate": 0.75, "rejected_win_rate": 0.25}
    return row


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(row=our_rows())
def test_there_and_back_is_the_same_row(name, row):
    assert not parse_row(row)[1], "the strategy makes rows that keep the rules"
    notes = Notes()
    theirs = json.loads(json.dumps(exporter(name)(dict(row), notes)))
    assert set(notes) <= {"rate of frames in a list, kept as fps or sample_fps, which other projects may not read"}
    left, back = dict(theirs), Notes()
    assert importer(name)(left, back) == row
    assert not any(value not in (None, [], "") for value in left.values()), left
    assert not [note for note in back if not note.startswith("earlier response")]


@pytest.mark.parametrize("name", [*FORMATS, "rrpo"])
def test_a_pair_over_videos_is_no_row_of_another_project(name):
    row = {"id": "a", "video": "a.mp4", "question": "Q?", "answer": "A.", "rejected_video": "b.mp4"}
    with pytest.raises(RowError, match="rejected_video"):
        exporter(name)({**row, "chosen": "A.", "rejected": "B."}, Notes())


def test_no_field_of_a_row_is_unknown_to_the_exports():
    notes = Notes()
    more_columns(dict.fromkeys(PreferenceRow.model_fields, "x"), notes)
    more_columns(dict.fromkeys(ExampleRow.model_fields, "x"), notes)
    assert not notes
    assert more_columns({"answer": "x", "id": "a", "chosen_score": 1, "note": 2}, notes) == {"id": "a"}
    assert notes == {"'chosen_score'": 1, "'note'": 1}


@pytest.mark.parametrize("name", FORMATS)
def test_files_go_there_and_back(tmp_path, name):
    (tmp_path / "f").mkdir()
    for frame in ("1.jpg", "2.jpg", "10.jpg"):
        (tmp_path / "f" / frame).write_bytes(b"x")
    source = write(
        tmp_path / "d.jsonl",
        {**PAIR, "turns": TURNS, "system": "Be brief."},
        {**PAIR, "id": "b", "video": "f", "fps": 2},
        {**PAIR, "id": "c", "clip": {"start": 1}},
        {**PAIR, "id": "d", "video": "/abs/v.mp4", "note": 1},
        {**PAIR, "id": "e", "video": "v.mp4", "videos": ["v.mp4", "w.mp4"]},
    )
    out = tmp_path / "sub" / "theirs.json"
    done = export_file(source, exporter(name), out=out)
    assert [str(error) for error in done.errors] == [
        f"{source}:3: clip: is a part of a video, which other projects' rows cannot hold; cut the part into a file of its own "
        "(ffmpeg -ss -to), or leave the row out with --skip-errors"
    ]
    assert done.notes["folder of frames, which is written as the list of its images"] == 1
    assert done.notes["'note'"] == 1
    again = write(tmp_path / "theirs.jsonl", *done.rows)
    back = import_file(again, importer(name), out=tmp_path / "back.jsonl", video_root=tmp_path / "sub")
    frames = [str(tmp_path / "f" / frame) for frame in ("1.jpg", "2.jpg", "10.jpg")]
    assert back.rows == [
        {**PAIR, "video": str(tmp_path / "v.mp4"), "turns": TURNS, "system": "Be brief."},
        {**PAIR, "id": "b", "video": frames, "fps": 2},
        {**PAIR, "id": "d", "video": "/abs/v.mp4"},
        {name: value for name, value in PAIR.items() if name != "video"}
        | {"id": "e", "videos": [str(tmp_path / "v.mp4"), str(tmp_path / "w.mp4")]},
    ]


def test_the_command_writes_the_kind_of_file_that_its_name_says(tmp_path, capsys):
    source = write(tmp_path / "d.jsonl", PAIR, {**PAIR, "id": "b", "question": "Where?"})
    for suffix in (".json", ".jsonl", ".parquet"):
        out = tmp_path / f"theirs{suffix}"
        assert main(["data", "export", "--to", "nemo_rl", str(source), "--out", str(out)]) == 0
        assert f"{out}: 2 pairs" in capsys.readouterr().out
        assert main(["data", "import", "--from", "nemo_rl", str(out), "--out", str(tmp_path / "back.jsonl")]) == 0
        assert read(tmp_path / "back.jsonl") == read(source)


def test_pairs_and_examples_do_not_mix(tmp_path, capsys):
    source = write(tmp_path / "d.jsonl", PAIR, {**ROW, "id": "b", "question": "Where?"})
    out = str(tmp_path / "theirs.jsonl")
    command = ["data", "export", "--to", "trl", str(source), "--out", out]
    assert main(command) == 2
    assert "holds 1 pairs and 1 examples, which this format cannot hold in one file" in capsys.readouterr().err
    assert main([*command, "--only", "pairs"]) == 0
    assert "1 x example, left out by --only pairs" in capsys.readouterr().out
    assert [set(row) >= {"prompt", "chosen", "rejected"} for row in read(tmp_path / "theirs.jsonl")] == [True]
    assert main([*command, "--only", "examples"]) == 0
    assert [row["completion"][0]["content"][0]["text"] for row in read(tmp_path / "theirs.jsonl")] == ["To the left."]
    source = write(tmp_path / "e.jsonl", ROW)
    assert main(["data", "export", "--to", "trl", str(source), "--out", out, "--only", "pairs"]) == 2
    assert "nothing was written; no row is of the kind that --only asks for" in capsys.readouterr().err


def test_options_that_other_projects_would_not_show_are_counted(tmp_path):
    options = {"answer": "left", "chosen": "left", "rejected": "right", "options": ["left", "right"]}
    listed = {**PAIR, **options, "id": "b", "question": "Which way? A. left B. right"}
    done = export_file(write(tmp_path / "d.jsonl", {**PAIR, **options}, listed), exporter("trl"), out=tmp_path / "o")
    assert done.notes == {"options that the question does not list, kept in a column that other projects do not read": 1}


def test_rrpo_refuses_what_its_rows_cannot_hold():
    for more in ({"turns": TURNS}, {"images": ["i.jpg"]}, {"clip": {"start": 1.0}}, {"videos": ["a.mp4", "b.mp4"]}):
        with pytest.raises(RowError, match=f"^{next(iter(more))}: is part of the prompt, which RRPO's rows cannot hold"):
            exporter("rrpo")({**PAIR, **more}, Notes())


# --- other projects' own code ---


def exported(tmp_path: pathlib.Path, name: str, *rows: dict) -> pathlib.Path:
    out = tmp_path / "theirs.jsonl"
    assert main(["data", "export", "--to", name, str(write(tmp_path / "d.jsonl", *rows)), "--out", str(out)]) == 0
    return out


def test_trl_reads_preferences(tmp_path, model_path):
    from transformers import AutoProcessor
    from trl.data_utils import apply_chat_template, is_conversational, maybe_extract_prompt

    rows = [
        {**PAIR, "system": "Be brief."},
        {**PAIR, "id": "b", "turns": TURNS, "caption": "A circle.", "chosen_score": 4.5},
    ]
    path = exported(tmp_path, "trl", *rows)
    data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    processor = AutoProcessor.from_pretrained(model_path)
    for row, example in zip(rows, data, strict=True):
        assert is_conversational(example)
        assert maybe_extract_prompt(example) == example
        texts = apply_chat_template(example, processor.tokenizer)
        assert texts["chosen"].startswith(row["chosen"])
        assert texts["rejected"].startswith(row["rejected"])
        assert texts["prompt"].count(processor.video_token) == len(example["videos"]) == 1
        said = [row.get("system", ""), *(turn["content"] for turn in row.get("turns", ())), row["question"]]
        places = [texts["prompt"].index(text) for text in said]
        assert places == sorted(places)


def test_llamafactory_gets_its_entry_of_dataset_info(tmp_path, capsys):
    path = exported(tmp_path, "llamafactory", {**PAIR, "system": "Be brief."})
    printed = capsys.readouterr().out
    entry = llamafactory.dataset_info(read(path), path.name)
    assert json.loads("{" + printed[printed.index("dataset_info.json:") + 18 :] + "}") == entry
    assert entry == {
        "theirs": {
            "file_name": "theirs.jsonl",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {
                "messages": "conversations",
                "chosen": "chosen",
                "rejected": "rejected",
                "system": "system",
                "videos": "videos",
            },
        }
    }
    (row,) = read(path)
    assert row["conversations"] == [{"from": "human", "value": "<video>Which way?"}]
    assert row["chosen"] == {"from": "gpt", "value": "To the left."}


def test_ms_swift_and_nemo_rl_have_their_documented_columns(tmp_path):
    (row,) = read(exported(tmp_path, "ms-swift", PAIR))
    assert row["messages"] == [
        {"role": "user", "content": "<video>Which way?"},
        {"role": "assistant", "content": "To the left."},
    ]
    assert (row["rejected_response"], row["videos"]) == ("To the right.", ["v.mp4"])
    (row,) = read(exported(tmp_path, "nemo-rl", PAIR))
    assert row["context"] == [
        {"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"type": "text", "text": "Which way?"}]}
    ]
    assert [(item["rank"], item["completion"][0]["content"][0]["text"]) for item in row["completions"]] == [
        (0, "To the left."),
        (1, "To the right."),
    ]


def test_a_file_of_both_kinds_is_refused_by_name(tmp_path):
    source = write(tmp_path / "d.jsonl", PAIR, {**ROW, "id": "b", "question": "Where?"})
    with pytest.raises(DataError, match="export each with --only pairs and --only examples"):
        export_file(source, exporter("trl"), out=tmp_path / "o", one_kind=True)
