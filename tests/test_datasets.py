"""Rows from JSONL: one parser for training and validation, and every broken rule says file, line, field, reason and fix."""

import json
import pathlib

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from vidalign.data.lines import MAX_DEPTH, parse_value
from vidalign.data.reading import read_examples, read_rows
from vidalign.data.rows import PreferenceRow
from vidalign.data.source import read_source
from vidalign.data.validate import validate
from vidalign.errors import DataError, RowError
from vidalign.recipes.given import given_pair

ROW = {"id": "a", "video": "v.mp4", "question": "Q?", "answer": "A."}
PAIR = {**ROW, "chosen": "A red circle.", "rejected": "A blue circle."}
BOM = "\ufeff"


def write(path: pathlib.Path, *rows) -> pathlib.Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_rows_in_order_with_videos_beside_the_file(tmp_path):
    path = write(
        tmp_path / "d.jsonl",
        ROW,
        "",
        {**ROW, "id": "b", "options": ["x", "A"], "video": "s3://bucket/v.mp4", "caption": "A ball.", "category": None},
    )
    first, second = read_examples(path)
    assert first.video == str(tmp_path / "v.mp4")
    assert second.options == ("x", "A")
    assert second.video == "s3://bucket/v.mp4"
    assert (second.caption, second.category) == ("A ball.", "")
    assert read_examples(path, video_root="/data", limit=1)[0].video == "/data/v.mp4"


def test_a_row_keeps_its_fields_and_its_place(tmp_path):
    path = write(tmp_path / "d.jsonl", "", {**PAIR, "chosen_score": 5, "note": 1})
    (read,) = read_rows(path)
    assert read.where == f"{path}:2"
    assert isinstance(read.row, PreferenceRow)
    assert (read.row.chosen_score, read.row.model_extra) == (5, {"note": 1})
    assert read.example.id == read.row.id


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", r"d\.jsonl:2: row: is not JSON"),
        ("{} {}", r"d\.jsonl:2: row: is not JSON \(Extra data at column 4\)"),
        ("[1]", r"d\.jsonl:2: row: must be a JSON object, got list"),
        (
            {"id": "b"},
            r"d\.jsonl:2: video: is missing or null; .*; and question: is missing or null; .*; and answer: is miss",
        ),
        ({**ROW, "id": "b", "answer": ""}, r"d\.jsonl:2: answer: is empty; write the right answer"),
        ({**ROW, "id": 5}, r"d\.jsonl:2: id: input should be a valid string, got 5"),
        ({**ROW, "id": "b", "options": "xy"}, r"d\.jsonl:2: options: input should be a valid list"),
        (
            {**ROW, "question": "Why?"},
            r"d\.jsonl:2: id: 'a' is also the id of .*d\.jsonl:1; give every row its own id$",
        ),
        ({**ROW, "id": "b"}, r"d\.jsonl:2: question: the video and question are the same as at .*d\.jsonl:1; remove one"),
        ({**ROW, "id": "b", "question": "<audio>\nQ?"}, r"d\.jsonl:2: question: holds 1 literal tag \(<audio>\)"),
        ({**PAIR, "id": "b", "rejected": None}, r"d\.jsonl:2: rejected: is missing or null"),
        ({**PAIR, "id": "b", "rejected": "A red circle."}, "rejected: equals chosen"),
        ({**PAIR, "id": "b", "chosen_phrases": [[4, 99]]}, r"chosen_phrases: \[4, 99\] is not a span"),
        ({**PAIR, "id": "b", "chosen_score": "5"}, "chosen_score: input should be a valid number"),
    ],
)
def test_malformed_rows(tmp_path, row, says):
    with pytest.raises(DataError, match=says):
        read_rows(write(tmp_path / "d.jsonl", ROW, row))


def test_missing_empty_and_not_utf8(tmp_path):
    with pytest.raises(DataError, match="no data file at"):
        read_rows(tmp_path / "none.jsonl")
    for content in ("", "\n \n", BOM, f"{BOM}\n"):
        with pytest.raises(DataError, match=r"d\.jsonl: file: holds no rows"):
            read_rows(write(tmp_path / "d.jsonl", content))
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROW).replace("Q?", "Q\u00e9?").encode("latin-1"))
    with pytest.raises(DataError, match="not valid UTF-8"):
        read_rows(tmp_path / "latin.jsonl")
    (tmp_path / "wide.jsonl").write_bytes(json.dumps(ROW).encode("utf-16"))
    with pytest.raises(DataError, match=r"wide\.jsonl:1: row: is text in UTF-16"):
        read_rows(tmp_path / "wide.jsonl")


# --- given pairs ---


def test_given_pairs_keep_their_scores_and_phrases_or_are_marked_where_they_differ(tmp_path):
    scored = {**PAIR, "id": "b", "question": "B?", "chosen_score": 5, "rejected_score": 1.5, "chosen_phrases": [[0, 5]]}
    rows = read_rows(write(tmp_path / "d.jsonl", PAIR, scored, {**ROW, "id": "c"}))
    pairs = [given_pair(row) for row in rows]
    assert [row.example.id for row in rows] == [pair.example_id for pair in pairs] == ["a", "b", "c"]
    assert pairs[0].chosen_marks == ((2, 5),)
    assert pairs[0].rejected_marks == ((2, 6),)
    assert pairs[1].chosen_marks == ((0, 5),)
    assert pairs[1].rejected_marks == ()
    assert (pairs[1].chosen_reward, pairs[1].rejected_reward) == (5, 1.5)
    assert (pairs[2].chosen, pairs[2].rejected) == ("A.", "")  # supervised training only
    assert len({pair.id for pair in pairs}) == 3
    assert json.loads(pairs[0].provenance)["source"].endswith("d.jsonl:1")


def test_ids_of_given_pairs_stay(tmp_path):
    (row,) = read_rows(write(tmp_path / "d.jsonl", PAIR))
    assert given_pair(row).id == "44ce87e66c4515e5"


# --- every command reads lines alike ---

DIGITS = json.dumps(ROW)[:-1] + ', "n": ' + "9" * 5000 + "}"


def deep(levels: int) -> str:
    return json.dumps(ROW)[:-1] + ', "n": ' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


def test_a_byte_order_mark_is_read_everywhere(tmp_path, capsys):
    (tmp_path / "v.mp4").write_bytes(b"x")
    path = write(tmp_path / "d.jsonl", BOM + json.dumps(PAIR), {**PAIR, "id": "b", "question": "B?"})
    assert [row.example.id for row in read_rows(path)] == ["a", "b"]
    assert main(["data", "validate", str(path)]) == 0
    assert main(["data", "export", "--to", "rrpo", str(path), "--out", str(tmp_path / "theirs.json")]) == 0
    theirs = write(tmp_path / "t.jsonl", BOM + json.dumps({"prompt": "Q?", "completion": "A.", "video": "v.mp4"}))
    assert main(["data", "import", "--from", "trl", str(theirs), "--out", str(tmp_path / "ours.jsonl")]) == 0
    assert main(["data", "convert", str(path), "--out", str(tmp_path / "d.csv")]) == 0
    assert [row.example.id for row in read_rows(tmp_path / "d.csv")] == ["a", "b"]
    with pytest.raises(DataError, match=r"d\.jsonl:2: row: is not JSON"):  # at the beginning of the file only
        read_rows(write(tmp_path / "d.jsonl", ROW, BOM + json.dumps(ROW)))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (DIGITS, "holds a number with more than 4,300 digits; shorten it"),
        (f"[{DIGITS}]", "holds a number with more than 4,300 digits; shorten it"),
        ("[" * 200_000, "is nested more than 100 levels deep"),
        ('{"a":' * 200_000, "is nested more than 100 levels deep"),
        (deep(MAX_DEPTH + 1), "is nested more than 100 levels deep"),
        ('{"id": "a", "answer": "left", "answer": "right"}', "names 'answer' twice in one object; keep one of the two"),
        ('{"clip": {"start": 1, "start": 2}}', "names 'start' twice in one object; keep one of the two"),
    ],
)
def test_what_python_cannot_hold_is_one_sentence_in_every_command(tmp_path, capsys, line, says):
    path, out = write(tmp_path / "d.jsonl", line), str(tmp_path / "out")
    expected = f"{path}:1: row: {says}"
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(expected)
    config = tmp_path / "align.yaml"
    config.write_text(f"run_dir: {tmp_path}/run\nmodel: {{path: {ROOT}/examples/shapes/model}}\ndata: {{train: {path}}}\n")
    for command in (
        ["align", str(config), "--dry-run"],
        ["data", "validate", str(path)],
        ["data", "import", "--from", "trl", str(path), "--out", out],
        ["data", "export", "--to", "rrpo", str(path), "--out", out],
        ["data", "export", "--to", "trl", str(path), "--out", out],
        ["data", "convert", str(path), "--out", f"{out}.json"],
    ):
        assert main(command) == 2
        said = [text for text in capsys.readouterr().err.splitlines() if expected in text]
        assert len(said) == 1, command


def test_a_row_may_be_nested_as_deep_as_the_limit(tmp_path):
    assert read_rows(write(tmp_path / "d.jsonl", deep(MAX_DEPTH)))[0].example.id == "a"
    wide = json.dumps({**ROW, "n": [[]] * 500})
    assert read_rows(write(tmp_path / "d.jsonl", wide))[0].example.id == "a"


def test_an_array_names_the_line_of_what_it_cannot_hold(tmp_path):
    path = write(tmp_path / "d.json", "[", json.dumps(ROW) + ",", DIGITS, "]")
    with pytest.raises(RowError, match=r"d\.json:3: row: holds a number with more than"):
        list(read_source(path))


def test_arrays_are_parsed_as_python_parses_them(tmp_path):
    for text in ("[]", " [ ] ", "[1]", "[ {} , 2\n]\n", '[{"a": [1, {"b": "]"}]}, "]"]'):
        read = [row.why if isinstance(row, RowError) else row for _, row in read_source(write(tmp_path / "d.json", text))]
        assert len(read) == len(json.loads(text))
        assert [row for row in read if isinstance(row, dict)] == [row for row in json.loads(text) if isinstance(row, dict)]
    for text in ("[", "[1", "[1,", "[1,]", "[,]", "[1 2]", "[1] 2", "[]]"):
        with pytest.raises(json.JSONDecodeError) as theirs:
            json.loads(text)
        with pytest.raises(DataError, match=r"d\.json:1 is not valid JSON") as ours:
            list(read_source(write(tmp_path / "d.json", text)))
        assert f"column {theirs.value.colno})" in str(ours.value)


def test_a_value_is_parsed_where_it_begins():
    assert parse_value('[1, {"a": 2}, 3]', 4) == ({"a": 2}, 12)


# --- validate and align agree ---

TEXTS = st.sampled_from(
    [
        "",
        " ",
        "a",
        "b",
        "A.",
        "Q?",
        " A. ",
        "left",
        "B",
        "<video>",
        "<image> left",
        "\ud83d",
        "\0",
        "é",
        "\u2028",
        "\ufeff",
        "x" * 300,
    ]
)
VIDEOS = st.sampled_from(
    ["v.mp4", "./v.mp4", "w.mp4", "s3://b/v.mp4", "file://{}/v.mp4", "s3://[", "file:///%00", "v\0.mp4", "", "http://℀"]
)
SPANS = st.lists(st.lists(st.integers(-1, 15) | st.none() | st.just(10**400), max_size=3), max_size=3)
ODD = st.sampled_from([None, True, 0, -1.5, float("nan"), 10**400, [], ["a"], [" ", 1], {"a": []}])
FIELDS = {
    "id": st.sampled_from("abc") | TEXTS,
    "video": VIDEOS,
    "question": TEXTS,
    "answer": TEXTS,
    "options": st.lists(TEXTS, max_size=3),
    "category": TEXTS,
    "caption": TEXTS,
    "chosen": TEXTS,
    "rejected": TEXTS,
    "chosen_score": st.floats() | st.integers(),
    "rejected_score": st.floats(),
    "chosen_phrases": SPANS,
    "rejected_phrases": SPANS,
    "note": ODD,
}
CHANGE = st.sampled_from(sorted(FIELDS)).flatmap(lambda name: st.tuples(st.just(name), FIELDS[name] | ODD))
BROKEN = st.sampled_from(
    ["", " ", "\x0b", "{", "{}{}", "[1]", "null", BOM, DIGITS, deep(101), deep(99), "[" * 5000, '"\\ud83d"']
)


@st.composite
def lines(draw, number: int) -> bytes:
    """A valid row with up to two fields changed and one left out, or a line that is not a row."""
    if draw(st.integers(0, 5)) == 0:
        return draw(BROKEN).encode()
    row = {
        **draw(st.sampled_from([ROW, PAIR])),
        "id": f"id-{number}",
        "question": f"Question {draw(st.integers(number, 4))}?",
    }
    row |= dict(draw(st.lists(CHANGE, max_size=2)))
    if draw(st.integers(0, 5)) == 0:
        row.pop(draw(st.sampled_from(sorted(row))))
    line = json.dumps(row, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return BOM.encode() + line if draw(st.integers(0, 9)) == 0 else line


@st.composite
def data_files(draw) -> bytes:
    made = [draw(lines(number)) for number in range(draw(st.integers(0, 3)))]
    return draw(st.sampled_from([b"", BOM.encode()])) + draw(st.sampled_from([b"\n", b"\r\n", b"\n\n"])).join(made)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name in ("v.mp4", "w.mp4"):
        (folder / name).write_bytes(name.encode())
    return folder


@settings(max_examples=1000, deadline=None)
@given(content=data_files())
def test_validate_accepts_a_file_exactly_when_align_does(videos, content):
    path = videos / "d.jsonl"
    path.write_bytes(content.replace(b"{}/", f"{videos}/".encode()))
    errors = [error for error in validate([path]).errors if not error.why.startswith("no file at ")]
    rows, said = [], ""
    try:
        rows = read_rows(path)
    except DataError as error:
        said = str(error)
    assert bool(errors) == bool(said), (errors, said)
    if errors:
        assert said.startswith(f"{errors[0].where}: {errors[0].field}: {errors[0].why}")
    else:
        assert [given_pair(row).example_id for row in rows] == [row.row.id for row in rows] != []
