"""Examples from JSONL: every malformed row says file, line, field and fix."""

import json
import pathlib

import pytest

from vidalign.data.reading import read_examples, read_pairs
from vidalign.errors import DataError

ROW = {"id": "a", "video": "v.mp4", "question": "Q?", "answer": "A."}


def write(path: pathlib.Path, *rows) -> pathlib.Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_rows_in_order_with_videos_beside_the_file(tmp_path):
    path = write(tmp_path / "d.jsonl", ROW, "", {**ROW, "id": "b", "options": ["x", "y"], "video": "s3://bucket/v.mp4"})
    first, second = read_examples(path)
    assert first.video == str(tmp_path / "v.mp4")
    assert second.options == ("x", "y")
    assert second.video == "s3://bucket/v.mp4"
    assert read_examples(path, video_root="/data", limit=1)[0].video == "/data/v.mp4"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", r"d\.jsonl:2: not a JSON object"),
        ("[1]", r"d\.jsonl:2: a row must be a JSON object, got list"),
        ({"id": "b"}, r"d\.jsonl:2: missing field 'video'"),
        ({**ROW, "id": "b", "answer": ""}, r"d\.jsonl:2: 'answer' must be a non-empty string"),
        ({**ROW, "id": 5}, r"d\.jsonl:2: 'id' must be a non-empty string, got 5"),
        ({**ROW, "id": "b", "options": "xy"}, r"d\.jsonl:2: 'options' must be a list of strings"),
        (ROW, r"d\.jsonl:2: id 'a' was used at line 1"),
        ({**ROW, "id": "b", "question": "<video>\nQ?"}, r"d\.jsonl:2: 'question' holds the literal <video>"),
    ],
)
def test_malformed_rows(tmp_path, row, says):
    with pytest.raises(DataError, match=says):
        read_examples(write(tmp_path / "d.jsonl", ROW, row))


def test_missing_empty_and_not_utf8(tmp_path):
    with pytest.raises(DataError, match="no data file at"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no rows"):
        read_examples(write(tmp_path / "d.jsonl", ""))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROW).replace("Q?", "Q\u00e9?").encode("latin-1"))
    with pytest.raises(DataError, match="not valid UTF-8"):
        read_examples(tmp_path / "latin.jsonl")


PAIR = {**ROW, "chosen": "A red circle.", "rejected": "A blue circle."}


def test_given_pairs_keep_their_scores_and_phrases_or_are_marked_where_they_differ(tmp_path):
    scored = {**PAIR, "id": "b", "chosen_score": 5, "rejected_score": 1.5, "chosen_phrases": [[0, 5]]}
    examples, pairs = read_pairs(write(tmp_path / "d.jsonl", PAIR, scored, {**ROW, "id": "c"}))
    assert [example.id for example in examples] == [pair.example_id for pair in pairs] == ["a", "b", "c"]
    assert pairs[0].chosen_marks == ((2, 5),)
    assert pairs[0].rejected_marks == ((2, 6),)
    assert pairs[1].chosen_marks == ((0, 5),)
    assert pairs[1].rejected_marks == ()
    assert (pairs[1].chosen_reward, pairs[1].rejected_reward) == (5, 1.5)
    assert (pairs[2].chosen, pairs[2].rejected) == ("A.", "")  # supervised training only
    assert len({pair.id for pair in pairs}) == 3
    assert json.loads(pairs[0].provenance)["source"].endswith("d.jsonl:1")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rejected": None}, r"d\.jsonl:1: 'rejected' is missing or null"),
        ({"rejected": "A red circle."}, "equals chosen"),
        ({"chosen_phrases": [[4, 99]]}, "is no span"),
        ({"chosen_score": "5"}, "chosen_score"),
    ],
)
def test_malformed_pairs(tmp_path, change, says):
    with pytest.raises(DataError, match=says):
        read_pairs(write(tmp_path / "d.jsonl", {**PAIR, **change}))
