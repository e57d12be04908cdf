"""A data set is checked row by row, file by file, and split against split."""

import json
import pathlib

import pytest

from pipelines.cli import main
from vidalign.data.rows import holds_answer
from vidalign.data.validate import validate
from vidalign.errors import DataError

ROW = {"id": "a", "video": "a.mp4", "question": "Which way?", "answer": "To the left."}
PAIR = {**ROW, "chosen": "To the left.", "rejected": "To the right."}


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(f"video {name}".encode())
    (tmp_path / "copy.mp4").write_bytes(b"video a")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "frames").mkdir()
    return tmp_path


def write(path: pathlib.Path, *rows) -> pathlib.Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def said(report) -> list[str]:
    return [str(error) for error in report.errors]


def test_clean_files_of_both_kinds(folder):
    train = write(
        folder / "train.jsonl", {**ROW, "category": "way", "options": []}, "\n", {**PAIR, "id": "b", "question": "Where?"}
    )
    test = write(
        folder / "test.jsonl",
        {**PAIR, "id": "c", "video": "b.mp4", "chosen_score": 4, "rejected_score": 1.5, "chosen_phrases": [[7, 11]]},
        {**ROW, "id": "d", "video": f"file://{folder}/c.mp4", "options": ["right", "left"], "category": None},
    )
    report = validate([train, test])
    assert not report.errors
    assert not report.warnings
    first, second = report.splits
    assert (first.num_rows, first.num_examples, first.num_preferences, first.num_marked) == (2, 1, 1, 0)
    assert second.num_marked == 1
    assert first.categories == {"way": 1, "": 1}
    assert list(first.videos.values()) == [f"{train}:1"]
    assert first.num_words["answer"] == [3, 3]
    assert first.num_words["rejected"] == [3]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{\n", "row: is not JSON"),
        ("[]\n", "row: must be a JSON object, got list"),
        ({"id": "b", "video": "a.mp4", "question": "q"}, "answer: is missing or null; write the right answer"),
        ({**ROW, "answer": None}, "answer: is missing or null"),
        ({**ROW, "question": "  "}, "question: is empty; write the question, or remove the row"),
        ({**ROW, "id": 5}, "id: input should be a valid string, got 5; give the row its own id, in quotes"),
        ({**ROW, "options": "ab"}, "options: input should be a valid list, got 'ab'"),
        ({**ROW, "options": ["To the left.", ""]}, "options[1]: is empty"),
        ({**ROW, "options": ["up", "down"]}, "options: none of ['up', 'down'] is the answer 'To the left.'"),
        ({**ROW, "category": 3}, "category: input should be a valid string, got 3"),
        ({**ROW, "caption": ["x"]}, "caption: input should be a valid string, got ['x']; write what the video shows"),
        ({**ROW, "video": "a\0.mp4"}, "video: holds a null character, which no path can have, got 'a\\x00.mp4'"),
        ({**ROW, "video": "file:///a%00.mp4"}, "video: holds a null character"),
        ({**ROW, "video": "s3://[b/a.mp4"}, "video: is not a uri, got 's3://[b/a.mp4'"),
        (
            {**ROW, "question": "<video> or <video>\nWhich way?"},
            "question: the texts of the user hold 2 literal <video> for 1 video of the row; write one <video> where",
        ),
        ({**PAIR, "rejected": "<image> <image>"}, "rejected: holds 2 literal tags (<image>, <image>)"),
        ({**ROW, "options": ["<video> left", "left"]}, "options[0]: holds 1 literal tag"),
        ({**ROW, "video": "none.mp4"}, "video: no file at"),
        ({**ROW, "video": "frames"}, "is a folder; name a video file"),
        ({**ROW, "video": "empty.mp4"}, "is empty; copy it again"),
        ({k: v for k, v in PAIR.items() if k != "rejected"}, "rejected: is missing or null; write the worse response"),
        ({**PAIR, "rejected": " To the left."}, "rejected: equals chosen, so neither is preferred"),
        ({**PAIR, "chosen_score": "5"}, "chosen_score: input should be a valid number, got '5'"),
        ({**PAIR, "chosen_score": float("nan")}, "chosen_score: input should be a finite number, got nan"),
        ({**PAIR, "chosen_phrases": [[7, 13]]}, "chosen_phrases: [7, 13] is not a span within the 12 characters"),
        ({**PAIR, "chosen_phrases": [[3, 3]]}, "chosen_phrases: [3, 3] is not a span"),
        ({**PAIR, "chosen_phrases": [[-1, 3]]}, "chosen_phrases: [-1, 3] is not a span"),
        (
            {**PAIR, "rejected_phrases": [[0, 4], [3, 6]]},
            "rejected_phrases: [3, 6] begins before 4, where the previous span ends",
        ),
        ({**PAIR, "rejected_phrases": [[7, 9], [0, 2]]}, "rejected_phrases: [0, 2] begins before 9"),
        ({**PAIR, "rejected_phrases": [[7]]}, "rejected_phrases[0]: list should have at least 2 items"),
        ({**PAIR, "rejected_phrases": [[7, "9"]]}, "rejected_phrases[0][1]: input should be a valid integer, got '9'"),
    ],
)
def test_each_rule_of_a_row(folder, row, says):
    path = write(folder / "d.jsonl", row)
    errors = said(validate([path]))
    assert len(errors) == 1, errors
    assert errors[0].startswith(f"{path}:1: ")
    assert says in errors[0]


def test_all_errors_of_a_row_and_of_all_rows_are_told(folder):
    path = write(folder / "d.jsonl", {"id": "", "video": "none.mp4"}, {**PAIR, "question": "<video>", "video": "none.mp4"})
    fields = [(error.where, error.field) for error in validate([path]).errors]
    first, second = f"{path}:1", f"{path}:2"
    assert fields == [(first, "id"), (first, "question"), (first, "answer"), (second, "question"), (second, "video")]


def test_ids_are_unique_in_the_data_set_and_questions_in_a_split(folder):
    train = write(
        folder / "train.jsonl", ROW, {**ROW, "id": "b"}, {**ROW, "id": "a", "question": "Where?"}, {**PAIR, "id": "c"}
    )
    test = write(
        folder / "test.jsonl", {**ROW, "video": "b.mp4"}, {**ROW, "id": "e", "video": "b.mp4", "question": "Where?"}
    )
    assert said(validate([train, test])) == [
        f"{train}:2: question: the video and question are the same as at {train}:1; remove one of the two rows",
        f"{train}:3: id: 'a' is also the id of {train}:1; give every row its own id",
        f"{test}:1: id: 'a' is also the id of {train}:1; give every row its own id",
    ]


def test_two_pairs_may_share_a_question_but_not_be_one(folder):
    path = write(folder / "d.jsonl", PAIR, {**PAIR, "id": "b", "rejected": "Up."}, {**PAIR, "id": "c"})
    report = validate([path])
    assert said(report) == [
        f"{path}:3: question: the video and pair are the same as at {path}:1; remove one of the two rows"
    ]
    assert report.warnings == [f"{path}:2: more than one pair for the same video and question (2 rows)"]


def test_a_video_of_two_splits_by_path_link_or_content(folder):
    (folder / "link.mp4").symlink_to(folder / "b.mp4")
    train = write(folder / "train.jsonl", ROW, {**ROW, "id": "b", "video": "b.mp4"}, {**ROW, "id": "c", "video": "gone.mp4"})
    (folder / "sub").mkdir()
    test = write(
        folder / "sub" / "test.jsonl",
        {**ROW, "id": "d", "video": "../copy.mp4"},
        {**ROW, "id": "e", "video": "../link.mp4"},
        {**ROW, "id": "f", "video": "../gone.mp4"},
        {**ROW, "id": "g", "video": "../c.mp4"},
        {**ROW, "id": "h", "video": "../copy.mp4", "question": "Where?"},
    )
    errors = [text for text in said(validate([train, test])) if "another split" in text]
    assert [text.split(":")[1] for text in errors] == ["1", "2", "3"]
    assert f"at {train}:1 as {folder / 'a.mp4'}, a copy" in errors[0]
    assert f"{folder / 'b.mp4'} is also in another split, at {train}:2; keep each video in one split" in errors[1]


def test_warnings_are_counted_with_their_first_row(folder):
    path = write(
        folder / "d.jsonl",
        {
            **PAIR,
            "note": 1,
            "caption": "A ball.",
            "chosen": "To the left. ",
            "chosen_score": 1,
            "rejected_score": 2,
            "chosen_phrases": [[0, 2]],
        },
        {**PAIR, "id": "b", "video": "s3://bucket/b.mp4", "note": 2, "options": ["left", "left"]},
    )
    report = validate([path])
    assert not report.errors
    assert report.warnings == [
        f"{path}:1: 'note' is not a known field and is ignored (2 rows)",
        f"{path}:1: 'chosen' begins or ends with white space, which will be trained on (1 row)",
        f"{path}:1: 'chosen_score' is not higher than 'rejected_score' (1 row)",
        f"{path}:2: the video is a remote uri and was not checked (1 row)",
        f"{path}:2: an option is listed twice (1 row)",
        f"{path}: pairs without marked phrases among pairs with them (1 row)",
    ]


def test_options_that_are_one_and_pairs_the_wrong_way_round_are_remarked(folder):
    rows = [
        {**ROW, "id": "o1", "question": "Q1?", "options": ["A. left", "B. Left."], "answer": "A"},
        {**ROW, "id": "o2", "question": "Q2?", "options": ["A. left", "A. right"], "answer": "A"},
        {**ROW, "id": "o3", "question": "Q3?", "options": ["right", "A. left"], "answer": "left"},
        {**ROW, "id": "o4", "question": "Q4?", "options": ["B. right", "A. left"], "answer": "A"},
    ]
    path = write(folder / "d.jsonl", *rows)
    assert validate([path]).warnings == [
        f"{path}:1: an option is listed twice (1 row)",
        f"{path}:2: some options carry a letter that another one has, or that others lack (2 rows)",
    ]
    turned = write(folder / "t.jsonl", {**PAIR, "answer": "left", "chosen": "right", "rejected": "left"})
    assert validate([turned]).warnings == [
        f"{turned}:1: 'rejected' is right by the row's answer and 'chosen' is wrong (1 row)"
    ]


@pytest.mark.parametrize(
    ("options", "answer", "held"),
    [
        (["left", "right"], "Left.", True),
        (["A. left", "B. right"], "B", True),
        (["A. left", "B. right"], "It moves to the right.", True),
        (["left", "right"], "It is bright.", False),
        (["left", "right"], "C", False),
        (["?"], "What?", False),
    ],
)
def test_options_hold_the_answer(options, answer, held):
    assert holds_answer(options, answer) is held


def test_files_that_cannot_be_checked(folder):
    path = write(folder / "d.jsonl", ROW)
    with pytest.raises(DataError, match="no data file at none"):
        validate(["none.jsonl"])
    with pytest.raises(DataError, match="is named twice"):
        validate([path, folder / "." / "d.jsonl"])
    assert said(validate([write(folder / "e.jsonl", "\n")]))[0].startswith(f"{folder / 'e.jsonl'}: file: holds no rows;")


def test_command_prints_errors_warnings_and_a_table(folder, capsys):
    train = write(folder / "train.jsonl", {**ROW, "category": "way"}, {**PAIR, "id": "b", "note": 1})
    test = write(folder / "test.jsonl", {**ROW, "id": "c", "video": "b.mp4", "category": "way"})
    assert main(["data", "validate", str(train), str(test)]) == 0
    shown = capsys.readouterr()
    assert shown.err == f"warning: {train}:2: 'note' is not a known field and is ignored (1 row)\n"
    table = [line.split() for line in shown.out.splitlines()]
    assert ["train.jsonl", "test.jsonl"] in table
    assert ["rows", "2", "1"] in table
    assert ["pairs", "1", "0"] in table
    assert ["videos", "1", "1"] in table
    assert ["median", "words", "of", "answer", "3", "3"] in table
    assert ["median", "words", "of", "chosen", "3", "-"] in table
    assert ["category", "way", "1", "1"] in table
    assert ["category", "(none)", "1", "0"] in table
    assert shown.out.endswith("0 errors, 1 warning\n")


def test_command_shows_fifty_errors_and_counts_all(folder, capsys):
    path = write(folder / "d.jsonl", *[{**ROW, "id": str(n), "question": f"q{n}", "answer": ""} for n in range(60)])
    assert main(["data", "validate", str(path)]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("answer: is empty") == 50
    assert "… and 10 more errors, 60 in total" in shown.err
    assert "60 errors, 0 warnings" in shown.out


def test_command_takes_a_video_root(folder, capsys):
    (folder / "data").mkdir()
    path = write(folder / "data" / "d.jsonl", ROW)
    assert main(["data", "validate", str(path)]) == 2
    assert "--video-root" in capsys.readouterr().err
    assert main(["data", "validate", str(path), "--video-root", str(folder)]) == 0


def test_many_categories_are_cut_short(folder, capsys):
    path = write(folder / "d.jsonl", *[{**ROW, "id": str(n), "question": f"q{n}", "category": f"c{n}"} for n in range(25)])
    assert main(["data", "validate", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("category c") == 20
    assert "… 25 categories in all" in shown
