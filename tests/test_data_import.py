"""Other projects' rows become ours: each format's variants, each row error, and nothing left out without a word."""

import json
import pathlib
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from vidalign.data.formats import EXPORTERS, IMPORTERS, exporter, importer
from vidalign.data.formats.convert import import_file
from vidalign.data.formats.export import export_file
from vidalign.data.formats.fields import Notes
from vidalign.data.formats.places import relocate
from vidalign.data.formats.rrpo import masked_text, phrases_of
from vidalign.data.rows import parse_row
from vidalign.errors import ConfigError, DataError, RowError

Q, A, B, V = "Which way?", "To the left.", "To the right.", "a.mp4"
PAIR = {"video": V, "question": Q, "answer": A, "chosen": A, "rejected": B}
EXAMPLE = {"video": V, "question": Q, "answer": A}
RRPO = {
    "question": f"<image>\n{Q}",
    "answer": A,
    "pred": B,
    "answer_masked": "To the <MASK> left </MASK>.",
    "pred_masked": "To the <MASK>right</MASK>.",
    "video": V,
    "sample_id": 7,
}


def user(content, *, tags=("role", "content"), role="user"):
    return {tags[0]: role, tags[1]: content}


def gpt(content, *, tags=("role", "content"), role="assistant"):
    return {tags[0]: role, tags[1]: content}


def convert(name, row):
    """The converted row, the notes, and the columns left over."""
    notes, left = Notes(), dict(row)
    return IMPORTERS[name](left, notes), notes, left


SHAREGPT = {"tags": ("from", "value")}
PLACED = [{"type": "video", "video": V}, {"type": "text", "text": Q}]
GOOD = [
    # TRL
    ("trl", {"prompt": Q, "chosen": A, "rejected": B, "video": V}, PAIR),
    ("trl", {"prompt": f"<video>\n{Q}", "chosen": A, "rejected": B, "videos": [V]}, PAIR),
    ("trl", {"prompt": Q, "chosen": f" {A}", "rejected": f" {B}", "images": [V]}, PAIR),
    ("trl", {"prompt": Q, "chosen": A, "rejected": B, "video": {"path": V, "bytes": None}}, PAIR),
    ("trl", {"prompt": [user(Q)], "chosen": [gpt(A)], "rejected": [gpt(B)], "videos": [V]}, PAIR),
    ("trl", {"prompt": [user(PLACED)], "chosen": gpt(A), "rejected": [gpt([{"type": "text", "text": B}])]}, PAIR),
    (
        "trl",
        {"prompt": [user([{"type": "video"}, {"type": "text", "text": Q}])], "chosen": A, "rejected": B, "videos": [V]},
        PAIR,
    ),
    (
        "trl",
        {"prompt": [user([{"type": "image"}, {"type": "text", "text": Q}])], "chosen": A, "rejected": B, "images": [V]},
        PAIR,
    ),
    ("trl", {"chosen": [user(Q), gpt(A)], "rejected": [user(Q), gpt(B)], "video": V}, PAIR),
    ("trl", {"chosen": [user(PLACED), gpt(A)], "rejected": [user(PLACED), gpt(B)]}, PAIR),
    ("trl", {"prompt": Q, "chosen": [user(Q), gpt(A)], "rejected": [user(Q), gpt(B)], "video": V}, PAIR),
    (
        "trl",
        {"prompt": Q, "chosen": A, "rejected": B, "video": V, "score_chosen": 9.5, "score_rejected": 2},
        {**PAIR, "chosen_score": 9.5, "rejected_score": 2},
    ),
    (
        "trl",
        {"prompt": Q, "chosen": A, "rejected": B, "video": V, "id": 3, "category": "c", "answer": "Left."},
        {**PAIR, "id": "3", "category": "c", "answer": "Left."},
    ),
    ("trl", {"prompt": Q, "completion": A, "video": V, "label": True}, EXAMPLE),
    ("trl", {"messages": [user(PLACED), gpt(A)]}, EXAMPLE),
    # LLaMA-Factory
    (
        "llamafactory",
        {
            "conversations": [user(f"<video>{Q}", role="human", **SHAREGPT)],
            "chosen": gpt(A, role="gpt", **SHAREGPT),
            "rejected": gpt(B, role="gpt", **SHAREGPT),
            "videos": [V],
        },
        PAIR,
    ),
    ("llamafactory", {"messages": [user(f"<video>{Q}")], "chosen": gpt(A), "rejected": gpt(B), "videos": V}, PAIR),
    (
        "llamafactory",
        {"instruction": "<video>Which", "input": "way?", "chosen": A, "rejected": B, "videos": [V]},
        {**PAIR, "question": "Which\nway?"},
    ),
    ("llamafactory", {"instruction": f"<video>{Q}", "input": "", "output": A, "videos": [V], "history": []}, EXAMPLE),
    (
        "llamafactory",
        {"conversations": [user(f"<video>{Q}", role="human", **SHAREGPT), gpt(A, role="gpt", **SHAREGPT)], "videos": [V]},
        EXAMPLE,
    ),
    # ms-swift
    ("ms-swift", {"messages": [user(f"<video>{Q}"), gpt(A)], "rejected_response": B, "videos": [V]}, PAIR),
    ("ms-swift", {"messages": [user(f"<video>{Q}"), gpt(A)], "rejected_response": [gpt(B)], "videos": [V]}, PAIR),
    ("ms-swift", {"messages": [user(f"<video>{Q}"), gpt(A)], "rejected_response": [B], "videos": [V]}, PAIR),
    (
        "ms-swift",
        {
            "messages": [user(f"<video>{Q}"), gpt(A)],
            "rejected_messages": [user(f"<video>{Q}"), gpt(B)],
            "videos": [V],
            "rejected_videos": [V],
        },
        PAIR,
    ),
    ("ms-swift", {"query": f"<video>{Q}", "response": A, "rejected_response": B, "videos": [V], "history": []}, PAIR),
    ("ms-swift", {"messages": [user(f"<video>{Q}"), gpt(A)], "videos": [V]}, EXAMPLE),
    # NeMo RL
    (
        "nemo-rl",
        {
            "context": [user(PLACED)],
            "completions": [{"rank": 1, "completion": [gpt(B)]}, {"rank": 0, "completion": [gpt(A)]}],
        },
        PAIR,
    ),
    ("nemo-rl", {"context": [user(PLACED)], "completions": [{"rank": 0, "completion": [gpt(A)]}]}, EXAMPLE),
    # LLaVA-Hound
    (
        "hound",
        {
            "id": "v_1_0",
            "video": V,
            "prompt": f"<video>\n{Q}",
            "answer": "Left.",
            "chosen": A,
            "rejected": B,
            "chosen_score": 5,
            "rejected_score": 1,
        },
        {**PAIR, "id": "v_1_0", "answer": "Left.", "chosen_score": 5, "rejected_score": 1},
    ),
    ("hound", {"id": "x", "video": V, "prompt": Q, "answer": A}, {**EXAMPLE, "id": "x"}),
    (
        "hound",
        {"video": V, "prompt": Q, "chosen": A, "rejected": B, "answer": A, "caption": "A ball."},
        {**PAIR, "caption": "A ball."},
    ),
    ("hound", {"video": V, "prompt": Q, "answer": A, "caption": "A ball."}, {**EXAMPLE, "caption": "A ball."}),
    # RRPO
    ("rrpo", RRPO, {**PAIR, "id": "7", "chosen_phrases": [[7, 11]], "rejected_phrases": [[7, 12]]}),
    (
        "rrpo",
        {**{k: v for k, v in RRPO.items() if k != "video"}, "media_path": V, "src": "webvid"},
        {**PAIR, "id": "7", "category": "webvid", "chosen_phrases": [[7, 11]], "rejected_phrases": [[7, 12]]},
    ),
]


@pytest.mark.parametrize(("name", "row", "expected"), GOOD)
def test_good_rows(name, row, expected):
    made, _, left = convert(name, row)
    assert made == expected
    assert not {key for key, value in left.items() if value} - {"label"}
    assert not parse_row({"id": "x", **made})[1]


SWIFT = {"messages": [user(f"<video>{Q}"), gpt(A)], "rejected_response": B, "videos": [V]}
NEMO = {"context": [user(PLACED)], "completions": [{"rank": 0, "completion": [gpt(A)]}, {"rank": 1, "completion": [gpt(B)]}]}
TRL = {"prompt": Q, "chosen": A, "rejected": B, "video": V}
LF = {"instruction": Q, "chosen": A, "rejected": B, "videos": [V]}
BAD = [
    ("trl", {"text": "x"}, "row: has the columns text"),
    ("trl", {**TRL, "video": None}, "videos: holds no video"),
    ("trl", {**TRL, "video": {"path": [V, 3]}}, "video: must name a video file, got int"),
    ("trl", {**TRL, "video": {"bytes": b"x", "path": V}}, "video: must name a video file, got dict"),
    ("trl", {**TRL, "video": {"fps": 2}}, "video: must name a video file, got nothing"),
    ("trl", {**TRL, "video": None, "videos": ["a.jpg"]}, r"videos: names an image \(a.jpg\); put the frames of one video"),
    ("trl", {**TRL, "videos": [["f1.jpg", "f2.jpg"]], "fps": [1]}, "fps: has 1 rates for 2 videos and images"),
    ("trl", {**TRL, "rejected": None}, "rejected: is missing or null"),
    ("trl", {**TRL, "chosen": 5}, "chosen: must be a text or a list of messages, got int"),
    ("trl", {**TRL, "chosen": "<video> left"}, "chosen: holds the literal tag <video>"),
    ("trl", {**TRL, "prompt": [user(Q), gpt(A)]}, "prompt: does not end with the user, so there is no question"),
    ("trl", {**TRL, "prompt": [user(Q), user("s", role="system")]}, "prompt: has a system message after other turns"),
    ("trl", {**TRL, "prompt": [user("s", role="system")] * 2 + [user(Q)]}, "prompt: has 2 system messages"),
    ("trl", {**TRL, "prompt": [{"role": "tool", "content": "x"}]}, r"prompt\[0\]: has the role 'tool'"),
    (
        "trl",
        {**TRL, "prompt": [user([{"type": "audio", "audio": "a.wav"}])]},
        r"prompt\[0\].content\[0\]: is a part of type",
    ),
    ("trl", {**TRL, "prompt": ["x"]}, r"prompt\[0\]: must be a message, got str"),
    ("trl", {**TRL, "prompt": [user(None)]}, r"prompt\[0\].content: must be a text or a list of parts"),
    ("trl", {**TRL, "chosen": [user("Other?"), gpt(A)]}, "chosen: has 1 turns before the response that are not the prompt"),
    ("trl", {**TRL, "chosen": [user(Q)]}, "chosen: does not end with the assistant"),
    ("trl", {"chosen": f"{Q} {A}", "rejected": f"{Q} {B}", "video": V}, "prompt: is missing"),
    ("trl", {"prompt": Q, "completion": B, "video": V, "label": False}, "label: is false"),
    (
        "trl",
        {"prompt": Q, "completion": B, "video": V, "label": "no"},
        'label: is "no", which does not say whether the response is',
    ),
    ("ms-swift", {"messages": [user(Q), gpt(A)], "videos": [V], "label": "bad"}, 'label: is "bad", which does not say'),
    ("trl", {"prompt": Q, "completion": B, "video": V, "label": 0}, "label: is 0: the row holds a bad response"),
    ("trl", {"prompt": Q, "completion": B, "video": V, "label": "False"}, 'label: is "False": the row holds a bad response'),
    (
        "llamafactory",
        {"instruction": Q, "output": B, "kto_tag": "false", "videos": [V]},
        "kto_tag: is .false.: the row holds",
    ),
    ("llamafactory", {"text": "x", "videos": [V]}, "row: has the columns text"),
    ("llamafactory", {**LF, "history": [["a"]]}, "history: is no list of questions with their responses"),
    ("llamafactory", {**LF, "instruction": 5}, "instruction: and input must be texts"),
    ("llamafactory", {"instruction": Q, "output": B, "kto_tag": False, "videos": [V]}, "kto_tag: is false"),
    ("llamafactory", {"instruction": Q, "output": ["a", "b"], "videos": [V]}, r"output\[0\]: must be a message"),
    ("ms-swift", {"videos": [V]}, "row: has the columns"),
    ("ms-swift", {**SWIFT, "messages": [user(Q)]}, "messages: does not end with the assistant"),
    ("ms-swift", {**SWIFT, "rejected_response": ["a", "b"]}, "rejected_response: holds 2 responses"),
    ("ms-swift", {**SWIFT, "rejected_videos": ["b.mp4"]}, "rejected_videos: differ from the row's videos"),
    ("ms-swift", {"query": Q, "response": A, "history": "a", "videos": [V]}, "history: is no list of questions"),
    ("ms-swift", {**SWIFT, "rejected_response": None, "label": False}, "label: is false"),
    ("nemo-rl", TRL, "row: has the columns .*--from trl"),
    ("nemo-rl", {**NEMO, "completions": []}, "completions: must be a list"),
    (
        "nemo-rl",
        {**NEMO, "completions": [{"completion": [gpt(A)]}]},
        r"completions\[0\]: must have a whole number as its rank",
    ),
    ("nemo-rl", {**NEMO, "completions": [NEMO["completions"][0]] * 2}, "completions: all have the rank 0,"),
    ("nemo-rl", {**NEMO, "completions": [{"rank": 0}]}, r"completions\[0\].completion: is missing"),
    ("hound", {"id": "x", "video": V, "conversations": []}, "row: has the columns .*--from llamafactory"),
    ("hound", {"video": V, "prompt": Q, "chosen": A}, "rejected: is missing"),
    ("hound", {"video": V, "prompt": Q}, "answer: is missing"),
    ("rrpo", {**RRPO, "question": None}, "question: is missing"),
    ("rrpo", {**RRPO, "pred": None}, "pred: is missing"),
    ("rrpo", {**RRPO, "video": None}, "video: must name a video file"),
    ("rrpo", {**RRPO, "answer_masked": 5}, "answer_masked: must be a text"),
    ("rrpo", {**RRPO, "answer_masked": "To the <MASK>left."}, "answer_masked: has <MASK> without </MASK>"),
    ("rrpo", {**RRPO, "answer_masked": "To the left</MASK>."}, "answer_masked: has </MASK> at character 11 without"),
    (
        "rrpo",
        {**RRPO, "answer_masked": "<MASK>To <MASK>the</MASK></MASK>"},
        "answer_masked: has <MASK> at character 9 inside",
    ),
    ("rrpo", {**RRPO, "pred_masked": "To the <MASK> </MASK>right."}, "pred_masked: marks nothing before character 14"),
    (
        "rrpo",
        {**RRPO, "pred_masked": "To a <MASK>right</MASK>."},
        "pred_masked: without its tags differs from the plain text, from 'a right.' on",
    ),
]


@pytest.mark.parametrize(("name", "row", "says"), BAD)
def test_row_errors_name_the_field(name, row, says):
    with pytest.raises(RowError, match=f"^{says}"):
        convert(name, {key: value for key, value in row.items() if value is not None})


@pytest.mark.parametrize(
    ("name", "row", "note"),
    [
        ("trl", {"messages": [user(PLACED), gpt("A ball."), user(Q), gpt(A)]}, "earlier response in a conversation"),
        ("trl", {**TRL, "prompt": [{**user(Q), "loss": 0.5}]}, "'loss' of a message"),
        ("trl", {"messages": [user([{**PLACED[0], "fps": 2}, PLACED[1]]), gpt(A)]}, "'fps' of a video"),
        ("trl", {**TRL, "video": {"url": V, "fps": 2}}, "'fps' of a video"),
        ("trl", {**TRL, "chosen": " left"}, "white space around a response"),
        ("trl", TRL, "no answer in the row"),
        ("rrpo", {**RRPO, "answer_masked": A, "pred_masked": B}, "no mark in either response"),
        ("rrpo", {**RRPO, "answer_masked": A}, "marks in only one of the two responses"),
        ("rrpo", RRPO, "white space next to the tags"),
        ("rrpo", {**RRPO, "media_path": "full/a.mp4"}, "'video', which differs from 'media_path'"),
        ("nemo-rl", {**NEMO, "completions": [*NEMO["completions"], {"rank": 2, "completion": "c"}]}, "completion between"),
        ("nemo-rl", {**NEMO, "completions": [{**c, "margin": 1} for c in NEMO["completions"]]}, "'margin' of a completion"),
    ],
)
def test_what_a_row_of_ours_does_not_hold_is_counted(name, row, note):
    notes = convert(name, row)[1]
    assert [text for text in notes if text.startswith(note)], notes


def test_marks_stay_on_their_words_where_white_space_goes():
    row = {
        **TRL,
        "chosen": "  a red cat",
        "rejected": " a blue cat ",
        "chosen_phrases": [[4, 7]],
        "rejected_phrases": [[3, 7]],
    }
    made = convert("trl", row)[0]
    marked = [made[side][slice(*made[f"{side}_phrases"][0])] for side in ("chosen", "rejected")]
    assert marked == ["red", "blue"]
    assert (made["chosen"], made["rejected"]) == ("a red cat", "a blue cat")


def test_media_path_is_the_video_that_the_authors_read():
    assert convert("rrpo", {**RRPO, "media_path": "full/a.mp4"})[0]["video"] == "full/a.mp4"


SYSTEM, TWO = "Be brief.", [V, "b.mp4"]
BEFORE = [{"role": "user", "content": "What moves?"}, {"role": "assistant", "content": "A ball."}]
TALK = {**PAIR, "system": SYSTEM, "turns": BEFORE}


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("trl", {**TRL, "prompt": [user(SYSTEM, role="system"), *BEFORE, user(Q)]}, TALK),
        (
            "trl",
            {"chosen": [*BEFORE, user(Q), gpt(A)], "rejected": [*BEFORE, user(Q), gpt(B)], "video": V},
            {**PAIR, "turns": BEFORE},
        ),
        ("llamafactory", {**LF, "system": SYSTEM, "history": [["What moves?", "A ball."]]}, TALK),
        ("llamafactory", {"messages": [*BEFORE, user(Q), gpt(A)], "videos": [V]}, {**EXAMPLE, "turns": BEFORE}),
        (
            "ms-swift",
            {"system": SYSTEM, "messages": [*BEFORE, user(Q), gpt(A)], "rejected_response": B, "videos": [V]},
            TALK,
        ),
        (
            "ms-swift",
            {"query": Q, "response": A, "history": [["What moves?", "A ball."]], "videos": [V]},
            {**EXAMPLE, "turns": BEFORE},
        ),
        (
            "nemo-rl",
            {**NEMO, "context": [user(SYSTEM, role="system"), *BEFORE, *NEMO["context"]]},
            {**TALK, "question": f"<video>{Q}"},
        ),
        ("nemo-rl", {"messages": [user(PLACED), gpt(A)]}, EXAMPLE),
        (
            "nemo-rl",
            {**NEMO, "completions": [{**c, "score": s} for c, s in zip(NEMO["completions"], (5, 1.5), strict=True)]},
            {**PAIR, "chosen_score": 5, "rejected_score": 1.5},
        ),
        ("trl", {**TRL, "video": None, "videos": TWO}, {**PAIR, "video": None, "videos": TWO}),
        (
            "trl",
            {**TRL, "video": None, "videos": TWO, "prompt": f"<video><video> {Q}"},
            {**PAIR, "video": None, "videos": TWO},
        ),
        ("trl", {**TRL, "prompt": "In <video> which way?"}, {**PAIR, "question": "In <video> which way?"}),
        (
            "llamafactory",
            {**LF, "instruction": f"<image><video>{Q}", "images": ["i.jpg"]},
            {**PAIR, "images": ["i.jpg"], "question": f"<image><video>{Q}"},
        ),
        ("llamafactory", {**LF, "instruction": f"<video><image>{Q}", "images": ["i.jpg"]}, {**PAIR, "images": ["i.jpg"]}),
        ("llamafactory", {**LF, "videos": None, "images": ["i.jpg"]}, {**PAIR, "video": None, "images": ["i.jpg"]}),
        ("llamafactory", {**LF, "videos": None, "images": [V], "instruction": f"<image>{Q}"}, PAIR),
        (
            "ms-swift",
            {**SWIFT, "videos": [["1.jpg", "2.jpg"]], "fps": 2.0},
            {**PAIR, "video": ["1.jpg", "2.jpg"], "fps": 2.0},
        ),
        ("trl", {**TRL, "video": ["1.jpg", "2.jpg"], "fps": 4}, {**PAIR, "video": ["1.jpg", "2.jpg"], "fps": 4}),
        (
            "trl",
            {**TRL, "video": None, "prompt": [user([{"type": "video", "video": ["1.jpg"], "sample_fps": 2}, PLACED[1]])]},
            {**PAIR, "video": ["1.jpg"], "fps": 2},
        ),
        (
            "nemo-rl",
            {**NEMO, "context": [user([{"type": "video", "video": V, "video_start": 1.5, "video_end": 3}, PLACED[1]])]},
            {**PAIR, "clip": {"start": 1.5, "end": 3}},
        ),
        (
            "trl",
            {**TRL, "video": None, "videos": [{"video": V, "clip": {"start": 1}}, "b.mp4"]},
            {**PAIR, "video": None, "videos": [{"video": V, "clip": {"start": 1}}, "b.mp4"]},
        ),
        (
            "trl",
            {
                **TRL,
                "video": None,
                "prompt": [user([{"type": "video_url", "video_url": {"url": "https://h/v.mp4"}}, PLACED[1]])],
            },
            {**PAIR, "video": "https://h/v.mp4"},
        ),
    ],
)
def test_conversations_and_everything_that_is_shown_are_kept(name, row, expected):
    made, notes, left = convert(name, row)
    assert made == {key: value for key, value in expected.items() if value is not None}
    assert not any(left.values())
    assert not [note for note in notes if not note.startswith(("no answer", "earlier response"))]
    assert not parse_row({"id": "x", **made})[1]


@pytest.mark.parametrize("columns", [{}, {"videos": [V]}])
@pytest.mark.parametrize(("text", "question"), [(f"<video>{V}</video>{Q}", Q), (f"{Q} <video>{V}</video>", f"{Q} <video>")])
def test_ms_swift_may_name_a_video_where_it_stands(columns, text, question):
    row = {"messages": [user(text), gpt(A)], **columns}
    assert convert("ms-swift", row)[0] == {"video": V, "question": question, "answer": A}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({**TRL, "prompt": "<video> and <video>"}, "question: the texts of the user hold 2 literal <video> for 1 video"),
        ({**TRL, "prompt": "<audio> what?"}, "question: holds 1 literal tag"),
        (
            {**TRL, "videos": ["b.mp4"], "prompt": f"<video>{Q}"},
            "question: the texts of the user hold 1 literal <video> for 2 videos",
        ),
        ({**TRL, "video": ["1.jpg"]}, "fps: is missing; a list of frames needs it; say how many frames .* with --fps"),
        ({**TRL, "prompt": [user(Q), user("Why?")]}, "turns: have the roles user"),
        ({**TRL, "prompt": "<|im_start|>user\nWhich?"}, "question: holds the special token"),
    ],
)
def test_the_rules_of_rows_hold_for_what_is_imported(tmp_path, row, says):
    done = import_file(lines(tmp_path / "d.jsonl", row), IMPORTERS["trl"], out=tmp_path / "out.jsonl")
    assert re.search(f"d.jsonl:1: {says}", str(done.errors[0])), done.errors


def test_folders_and_lists_of_frames_get_their_rate_from_the_command(tmp_path, capsys):
    (tmp_path / "v_1").mkdir()
    hound = {"id": "x", "prompt": f"<video>\n{Q}", "answer": A}
    source = lines(
        tmp_path / "d.jsonl",
        {**hound, "video": "v_1"},
        {**hound, "id": "y", "video": "gone/v_2"},
        {**hound, "id": "z", "video": V},
        {**hound, "id": "l", "video": ["1.jpg", "2.jpg"]},
    )
    out = tmp_path / "out" / "rows.jsonl"
    assert main(["data", "import", "--from", "hound", str(source), "--out", str(out), "--fps", "2"]) == 0
    assert [(row["video"], row.get("fps")) for row in read(out)] == [
        (str(tmp_path / "v_1"), 2.0),
        (str(tmp_path / "gone" / "v_2"), 2.0),
        (str(tmp_path / V), None),
        ([str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg")], 2.0),
    ]
    assert "warning: 4 videos not found" in capsys.readouterr().out


def test_best_and_worst_rank_of_many():
    many = [{"rank": rank, "completion": text} for rank, text in ((3, "worst"), (1, "best"), (2, "middle"), (2, "other"))]
    made, notes, _ = convert("nemo-rl", {**NEMO, "completions": many})
    assert (made["chosen"], made["rejected"]) == ("best", "worst")
    assert notes["completion between the best and the worst rank, which is not used"] == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", Q, A, V, "<video>", "user", "assistant"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "video", "from", "value", "rank", "completion", "path"]),
            inner,
        )
    ),
    max_leaves=12,
)
COLUMNS = """
    id video videos images prompt chosen rejected completion messages label conversations instruction input output history
    caption system query response rejected_response rejected_messages rejected_videos context completions answer question pred
    answer_masked pred_masked media_path sample_id src kto_tag options category chosen_score
"""


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(IMPORTERS)), row=st.dictionaries(st.sampled_from(COLUMNS.split()), JSON, max_size=8))
def test_whatever_a_row_holds_it_is_converted_or_an_error_of_that_row(name, row):
    try:
        made = IMPORTERS[name]({key: value for key, value in row.items() if value is not None}, Notes())
    except RowError:
        return
    assert made.keys() >= {"question", "answer"}
    assert made.keys() & {"video", "videos", "images"}


# ---------------------------------------------------------------------------------------------------------- RRPO's marks


@pytest.mark.parametrize(
    ("masked", "plain", "spans"),
    [
        ("a <MASK> red </MASK> or <MASK> blue </MASK> ball", "a red or blue ball", [(2, 5), (9, 13)]),
        ("<MASK>a</MASK><MASK>b</MASK> c", "ab c", [(0, 1), (1, 2)]),
        ("a <MASK>red </MASK>ball", "a red ball", [(2, 6)]),
        ("no mark", "no mark", []),
        ("<MASK> Two words </MASK>", "Two words", [(0, 9)]),
    ],
)
def test_phrases_of_masked_texts(masked, plain, spans):
    assert phrases_of(masked, plain, "answer_masked", Notes()) == spans


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="ab .\n(", min_size=1, max_size=20), data=st.data())
def test_marks_survive_the_way_there_and_back(text, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    spans = [(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False) if text[a:b].strip()]
    assert phrases_of(masked_text(text, spans, "chosen"), text, "answer_masked", Notes()) == spans


def test_a_response_with_their_tags_cannot_be_exported():
    with pytest.raises(RowError, match="chosen: holds the literal tag <MASK>"):
        masked_text("a <MASK>", [], "chosen")


# ---------------------------------------------------------------------------------------------------------------- files


def lines(path: pathlib.Path, *rows) -> pathlib.Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["jsonl", "json", "array.json", "parquet"])
def test_jsonl_arrays_and_parquet_give_the_same_rows(tmp_path, kind):
    rows = [{**TRL, "prompt": [user(PLACED)], "video": None, "id": "ä"}, {**TRL, "prompt": [user([PLACED[1]])], "id": "b"}]
    path = tmp_path / f"d.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "array.json":
        path.write_text("\ufeff " + json.dumps(rows, indent=1), encoding="utf-8")
    else:
        lines(path, *rows)
    done = import_file(path, IMPORTERS["trl"], out=tmp_path / "out.jsonl")
    assert not done.errors
    assert done.rows == [{"id": "ä", **PAIR}, {"id": "b", **PAIR}]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.jsonl", None, "no data file at"),
        ("d.jsonl", b"\n", "holds no rows"),
        ("d.json", b"[]", "holds no rows"),
        ("d.json", b'[{"a": 1},\n}]', r"d.json:2 is not valid JSON"),
        ("d.json", b'["\xff"]', "not valid UTF-8"),
        ("d.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        import_file(tmp_path / name, IMPORTERS["trl"], out=tmp_path / "out.jsonl")


def test_every_bad_line_is_an_error_with_its_place(tmp_path):
    path = lines(
        tmp_path / "d.jsonl", TRL, "{\n", "[1]\n", {**TRL, "chosen": " "}, {**TRL, "rejected": A}, {**TRL, "video": ""}
    )
    path.write_bytes(
        path.read_bytes()
        + b'{"prompt": "\xe9"}\n'
        + b'{"prompt": "\\ud83d", "chosen": "a", "rejected": "b", "video": "v"}\n'
    )
    done = import_file(path, IMPORTERS["trl"], out=tmp_path / "out.jsonl")
    assert len(done.rows) == 1
    assert [str(error).removeprefix(str(path)).split(";")[0] for error in done.errors] == [
        ":2: row: is not JSON (Expecting property name enclosed in double quotes at column 2)",
        ":3: row: must be a JSON object, got list",
        ":4: chosen: is empty",
        ":5: rejected: equals chosen, so neither is preferred",
        ":6: videos: holds no video",
        ":7: row: is not valid UTF-8 (invalid continuation byte)",
        ":8: question: holds half of a character (an unpaired surrogate), got '\\ud83d'",
    ]
    assert done.notes == {
        "no answer in the row, so the chosen response is used as the answer": 1
    }  # of the converted row only


def test_ids_are_made_kept_and_made_unique(tmp_path):
    path = lines(tmp_path / "d.jsonl", TRL, {**TRL, "id": "x"}, {**TRL, "id": "x"}, {**TRL, "id": "x-2"}, {**TRL, "id": [1]})
    done = import_file(path, IMPORTERS["trl"], out=tmp_path / "out.jsonl")
    assert [row["id"] for row in done.rows] == ["d-000001", "x", "x-2", "x-2-2", "d-000005"]
    assert done.notes["id that an earlier row already has, which got a number appended"] == 2
    assert done.notes["column 'id', which is not used"] == 1


@pytest.mark.parametrize("name", ["trl", "llamafactory", "ms-swift", "nemo-rl", "hound", "rrpo"])
def test_every_format_keeps_captions(tmp_path, name):
    row = next(row for known, row, made in GOOD if known == name and "rejected" in made)
    path = lines(tmp_path / "d.jsonl", {**row, "caption": "A ball rolls."}, {**row, "caption": ["no text"]})
    done = import_file(path, importer(name), out=tmp_path / "out.jsonl")
    assert [made.get("caption") for made in done.rows] == ["A ball rolls.", None]
    assert done.notes["column 'caption', which is not used"] == 1


def test_relative_videos_follow_the_file():
    root, below, beside = pathlib.Path("/data/set"), pathlib.Path("/data"), pathlib.Path("/other")
    assert relocate("v/a.mp4", root, root) == "v/a.mp4"
    assert relocate("v/a.mp4", root, below) == "set/v/a.mp4"
    assert relocate("v/a.mp4", root, beside) == "/data/set/v/a.mp4"
    assert relocate("../a.mp4", root, beside) == "/data/a.mp4"
    assert relocate("/v/a.mp4", root, beside) == "/v/a.mp4"
    assert relocate("s3://bucket/a.mp4", root, beside) == "s3://bucket/a.mp4"


def test_import_command_writes_rows_and_says_what_they_do_not_hold(tmp_path, capsys):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / V).write_bytes(b"x")
    source = lines(
        tmp_path / "d.jsonl", {**TRL, "tools": ["t"], "note": ""}, {"prompt": Q, "completion": A, "video": "none.mp4"}
    )
    out = tmp_path / "new" / "out.jsonl"
    arguments = ["data", "import", "--from", "trl", str(source), "--out", str(out), "--video-root", str(tmp_path / "media")]
    assert main(arguments) == 0
    rows = read(out)
    assert rows[0] == {**PAIR, "id": "d-000001", "video": str(tmp_path / "media" / V)}
    assert list(rows[0]) == ["id", "video", "question", "answer", "chosen", "rejected"]
    said = capsys.readouterr().out
    assert "1 pair and 1 example" in said
    assert "1 x column 'tools', which is not used" in said
    assert "note" not in said
    assert "warning: 1 video not found" in said


def test_import_command_writes_nothing_over_errors_unless_told(tmp_path, capsys):
    source, out = lines(tmp_path / "d.jsonl", TRL, *[{**TRL, "chosen": None}] * 60), tmp_path / "out.jsonl"
    arguments = ["data", "import", "--from", "trl", str(source), "--out", str(out)]
    assert main(arguments) == 2
    assert not out.exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("chosen: is missing") == 50
    assert "… and 10 more errors, 60 in total" in said.err
    assert "--skip-errors" in said.err
    assert main([*arguments, "--skip-errors"]) == 0
    assert len(read(out)) == 1
    assert "60 rows with errors left out" in capsys.readouterr().out


def test_commands_name_mistakes_in_one_sentence(tmp_path, capsys):
    source = lines(tmp_path / "d.jsonl", TRL)
    assert main(["data", "import", "--from", "trl", str(source), "--out", str(source)]) == 2
    assert "--out must name a file other than the source" in capsys.readouterr().err
    assert main(["data", "import", "--from", "trl", "none.jsonl", "--out", str(tmp_path / "o")]) == 2
    assert "no data file at none.jsonl" in capsys.readouterr().err
    assert main(["data", "import", "--from", "tlr", str(source), "--out", str(tmp_path / "o")]) == 2
    assert "unknown import format 'tlr'; did you mean trl?" in capsys.readouterr().err
    assert main(["data", "export", "--to", "hound", str(source), "--out", str(tmp_path / "o")]) == 2
    assert "unknown export format 'hound'; known: trl, llamafactory, ms-swift, nemo-rl, rrpo" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "import", str(source), "--out", "o", "--from", "trl", "--no-such-flag"])


def test_help_lists_the_formats(capsys):
    for command, names in (("import", IMPORTERS), ("export", EXPORTERS)):
        with pytest.raises(SystemExit):
            main(["data", command, "--help"])
        said = "".join(capsys.readouterr().out.split())  # argparse breaks lines at hyphens too
        assert ",".join(sorted(names)) in said
        assert "package.module:attribute" in said


# --- formats of one's own ---

OWN_FORMAT = """
def to_row(fields, notes):
    if "clip" not in fields:
        return {"question": "no video"}
    return {"video": fields.pop("clip"), "question": fields.pop("q"), "answer": fields.pop("a")}

def from_row(row, notes):
    notes["'answer'"] += 1
    return {"clip": row["video"], "better": row["chosen"], "worse": row["rejected"]}
"""


def test_a_format_of_ones_own_is_one_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "own_format.py").write_text(OWN_FORMAT)
    monkeypatch.syspath_prepend(tmp_path)
    source, out = lines(tmp_path / "d.jsonl", {"clip": V, "q": Q, "a": A, "more": 1}), tmp_path / "out.jsonl"
    assert main(["data", "import", "--from", "own_format:to_row", str(source), "--out", str(out)]) == 0
    assert read(out) == [{"id": "d-000001", **EXAMPLE}]
    assert "column 'more', which is not used" in capsys.readouterr().out
    pairs = lines(tmp_path / "p.jsonl", {"id": "x", **PAIR})
    assert main(["data", "export", "--to", "own_format:from_row", str(pairs), "--out", str(tmp_path / "o.json")]) == 0
    assert json.loads((tmp_path / "o.json").read_text()) == [{"clip": V, "better": A, "worse": B}]
    assert main(["data", "import", "--from", "own_format:to_row", str(lines(source, {"q": Q})), "--out", str(out)]) == 2
    assert "d.jsonl:1: video: is missing or null" in capsys.readouterr().err
    assert main(["data", "import", "--from", "own_format:to_row", str(lines(source, {"clip": V})), "--out", str(out)]) == 2
    assert "d.jsonl:1: q: is missing, and the format asks for it" in capsys.readouterr().err
    examples = lines(tmp_path / "e.jsonl", {"id": "x", **EXAMPLE})
    assert main(["data", "export", "--to", "own_format:from_row", str(examples), "--out", str(tmp_path / "o.json")]) == 2
    assert "e.jsonl:1: chosen: is missing, and the format asks for it" in capsys.readouterr().err


def test_names_of_formats_are_resolved():
    assert importer("trl") is IMPORTERS["trl"]
    assert exporter("vidalign.data.formats.rrpo:from_row") is EXPORTERS["rrpo"]
    with pytest.raises(ConfigError, match=r"import format 'vidalign.data.formats.trl:to_rows': .* did you mean .*:to_row"):
        importer("vidalign.data.formats.trl:to_rows")


# --------------------------------------------------------------------------------------------------------------- export


def test_rrpo_there_and_back(tmp_path, capsys):
    ours = [
        {**PAIR, "id": "7", "category": "c", "chosen_phrases": [[7, 11]], "rejected_phrases": [[7, 12]]},
        {**PAIR, "id": "r-07", "question": "Where?", "chosen_phrases": [[0, 2], [7, 11]], "rejected_phrases": []},
        {**PAIR, "id": "plain", "question": "Why?"},
    ]
    first = lines(tmp_path / "first.jsonl", *ours)
    assert main(["data", "export", "--to", "rrpo", str(first), "--out", str(tmp_path / "theirs.json")]) == 0
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    assert theirs[0] == {
        **{**RRPO, "pred_masked": "To the <MASK> right </MASK>."},
        "media_path": V,
        "src": "c",
    }
    back = tmp_path / "back.jsonl"
    assert main(["data", "import", "--from", "rrpo", str(tmp_path / "theirs.json"), "--out", str(back)]) == 0
    assert read(back) == ours
    again = export_file(back, EXPORTERS["rrpo"], out=tmp_path / "again.json")
    assert again.rows == theirs
    assert not again.notes
    assert "3 pairs" in capsys.readouterr().out


def test_what_rrpo_rows_cannot_hold_is_counted_and_examples_are_errors(tmp_path, capsys):
    scored = {**PAIR, "id": "a", "answer": "Left.", "chosen_score": 5.0, "rejected_score": 1.0, "caption": "A ball."}
    source = lines(tmp_path / "d.jsonl", scored, {**EXAMPLE, "id": "b"}, {**PAIR, "id": ""}, "{\n")
    done = export_file(source, EXPORTERS["rrpo"], out=tmp_path / "o.json")
    assert set(done.notes) == {
        "answer, where it is not the chosen response",
        "'chosen_score'",
        "'rejected_score'",
        "'caption'",
    }
    assert [error.field for error in done.errors] == ["chosen", "id", "row"]
    assert main(["data", "export", "--to", "rrpo", str(source), "--out", str(tmp_path / "o.json")]) == 2
    assert "the row is an example, not a pair" in capsys.readouterr().err
