"""Examples from JSONL: every malformed row says file, line, field and fix."""

import json
import pathlib

import pytest

from vidalign.datasets import read_examples
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
