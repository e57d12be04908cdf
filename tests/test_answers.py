"""Right answers: every kind by many forms of replies, cases judged by a person, hand-computed overlaps, and properties of any text."""

from __future__ import annotations

import json
import pathlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vidalign
from vidalign.data.answers import AGREES, is_correct, kind_of, token_f1, trust, verdict
from vidalign.data.rows import parse_row
from vidalign.types import Example, stable_hash

CASES = pathlib.Path(__file__).parent / "cases"

OPEN = Example(id="o", video="v.mp4", question="Which way?", answer="To the left.")
CHOICE = Example(id="c", video="v.mp4", question="Which way?", answer="left", options=("right", "left", "a still one"))


@pytest.mark.parametrize("text", ["To the left.", "to the left", "  TO  the\nleft ! ", "“To the left”"])
def test_open_answer_ignores_case_space_and_final_punctuation(text):
    assert is_correct(text, OPEN)


@pytest.mark.parametrize("text", ["", " . ", "not to the left", "To the left. Or right.", "B", "right"])
def test_an_open_answer_is_right_in_its_own_words_only(text):
    assert not is_correct(text, OPEN)


@pytest.mark.parametrize("text", ["B", "b", "B.", "(B)", "B)", "B:", "B. left", "(B) Left.", "B - left", "left", "Left."])
def test_multiple_choice_accepts_letter_text_and_both(text):
    assert is_correct(text, CHOICE)


@pytest.mark.parametrize(
    "text", ["", "A", "(A)", "D", "B. right", "A. left", "right", "A or B", "left or right", "Because", "b right it"]
)
def test_multiple_choice_refuses_other_options_and_hedging(text):
    assert not is_correct(text, CHOICE)


@pytest.mark.parametrize(
    ("options", "answer"),
    [(("five", "twice", "two"), "two"), (("do not sit", "stand"), "do not sit"), (("run", "does not run"), "does not run")],
)
def test_a_letter_with_the_whole_text_of_its_option_names_it_whatever_the_text_says(options, answer):
    example = Example(id="x", video="v", question="?", answer=answer, options=options)
    letter = "ABC"[options.index(answer)]
    assert all(
        is_correct(text, example)
        for text in (f"({letter}) {answer}", f"{letter}. {answer}", f"{letter}: {answer.capitalize()}.")
    )
    assert not is_correct(f"({'BCA'[options.index(answer)]}) {answer}", example)


def test_the_text_of_an_option_wins_over_a_letter():
    example = Example(id="x", video="v", question="Which letter appears?", answer="b", options=("b", "a"))
    assert is_correct("B", example)
    assert not is_correct("A", example)


@pytest.mark.parametrize("answer", ["B", "B. left", "left"])
def test_the_reference_may_be_a_letter_or_a_listed_option(answer):
    example = Example(id="x", video="v", question="?", answer=answer, options=("A. right", "B. left"))
    assert all(is_correct(text, example) for text in ("B", "(B)", "left", "B. left"))
    assert not any(is_correct(text, example) for text in ("A", "right", "A. right", "A. left"))


def test_full_reference_answer_counts_where_no_option_holds_it():
    example = Example(id="x", video="v", question="?", answer="It moves left.", options=("right", "left"))
    assert is_correct("it moves left", example)
    assert not is_correct("A", example)


def test_token_f1_is_hand_computed_f1():
    assert token_f1("The circle.", "the circle") == 1.0
    # 2 common words, 3 and 4 words: 2·2/7
    assert token_f1("a red circle", "the big red circle") == pytest.approx(4 / 7)
    assert token_f1("red red red", "red") == pytest.approx(2 / 4)
    assert token_f1("blue", "red") == 0.0
    assert token_f1("", "red") == 0.0


def test_the_same_words_in_another_order_stay_below_one():
    assert 0.999 < token_f1("red then blue", "blue then red") < 1.0


@given(st.text(max_size=40), st.text(max_size=40))
def test_token_f1_is_symmetric_and_bounded(a, b):
    assert 0.0 <= token_f1(a, b) <= 1.0
    assert token_f1(a, b) == token_f1(b, a)
    assert token_f1(a, a) == 1.0


def cases(name):
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


# Every kind, by cases that a person judged


@pytest.mark.parametrize("case", cases("answers.jsonl"), ids=lambda case: f"{case['kind']}-{case['reply']}")
def test_a_reply_is_judged_as_a_person_judges_it(case):
    told = {"question": case["question"], "answer": case["answer"], "options": case["options"]}
    assert vidalign.judge_reply(case["reply"], **told) is case["right"]
    assert is_correct(case["reply"], Example(id="a", video="v", **told)) is case["right"]


@pytest.mark.parametrize("question", ["", "What happens?", "Which way does the circle move?"])
@pytest.mark.parametrize("case", cases("trust_order.jsonl"), ids=lambda case: case["better"])
def test_a_better_reply_is_trusted_more_whatever_its_length(case, question):
    example = Example(id="a", video="v", question=question, answer=case["answer"])
    assert trust(case["better"], example) > trust(case["worse"], example)


# Choice

LISTED = ("A. left", "B. right", "C. up", "D. down")


def chosen(reply, answer="B", options=LISTED):
    return verdict(
        reply, Example(id="c", video="v", question="Which way does the square move?", answer=answer, options=options)
    )


@pytest.mark.parametrize("answer", ["B. right", "right", "(b)", "The square moves right."])
def test_the_reference_may_name_the_option_in_any_form(answer):
    [first, *_] = cases("replies.jsonl")
    assert [reply for reply in first["right"] if chosen(reply, answer) is not True] == []
    assert [reply for reply in first["wrong"] if chosen(reply, answer) is not False] == []
    assert [reply for reply in first["right"] if chosen(reply, "A") is not False] == []


@pytest.mark.parametrize(
    ("options", "answer", "right", "wrong"),
    [
        (("1. left", "2. right"), "2", ["2", "(2)", "2. right", "The answer is 2.", "right"], ["1", "not 2", "2. left", "12"]),
        (("(A) left", "(B) right"), "(B)", ["B", "(B)", "right"], ["A", "left"]),
        (("A: 2", "B: 3"), "B", ["3", "three", "There are three.", "B: 3"], ["2", "two", "13"]),
        (("2", "3", "4"), "3", ["3", "B", "three", "b"], ["2", "C", "4", "30"]),
        (("yes", "no"), "no", ["no", "No, it does not.", "B"], ["yes", "A", "yes or no"]),
        (("red", "dark red"), "dark red", ["dark red", "It is dark red.", "B"], ["red", "It is red."]),
        (("A. 向左", "B. 向右"), "B", ["向右", "方块向右移动", "选B", "B项"], ["向左", "方块不向右移动", "A"]),
        (("a red square", "a blue square"), "A", ["The red square.", "a red square", "A"], ["a blue square", "B", "a square"]),
        (("It moves", "It does not move"), "B", ["It does not move", "B"], ["It moves", "A"]),
    ],
)  # fmt: skip
def test_options_of_other_forms(options, answer, right, wrong):
    assert [reply for reply in right if chosen(reply, answer, options) is not True] == []
    assert [reply for reply in wrong if chosen(reply, answer, options) is not False] == []


# Yes or no, numbers, short answers


def told(question, answer, reply, **more):
    return verdict(reply, Example(id="q", video="v", question=question, answer=answer, **more))


SAYS_NO = [
    "No", "NO!", "no.", "No, it moves right.", "The answer is no.", "Answer: No", "**No**", "It does not.", "Nope",
    "It doesn't move left.", "<think>yes?</think>No", "\\boxed{No}", "No.\n\nIt moves right.", "I think no", "False", "ＮＯ", "(No)",
    "That is not correct", "Yes... wait, no", "<answer>no</answer>", "Based on the video, no.",
]  # fmt: skip
SAYS_YES = [
    "Yes", "yes.", "Yes, it does", "The square moves left.", "It does.", "It moves left.", "The answer is yes", "True", "Yeah",
    "That is correct", "**YES**", "<answer>Yes</answer>", "No... wait, yes",
]  # fmt: skip


@pytest.mark.parametrize(("replies", "means"), [(SAYS_NO, "No"), (SAYS_YES, "Yes")])
def test_yes_and_no_in_every_form(replies, means):
    question, other = "Does the square move left?", {"No": "Yes", "Yes": "No"}[means]
    for answer in (means, f"{means}, that is so."):
        assert [reply for reply in replies if told(question, answer, reply) is not True] == []
    assert [reply for reply in replies if told(question, other, reply) is not False] == []


@pytest.mark.parametrize("reply", ["", "maybe", "I can't tell", "It is unclear.", "yes and no", "Yes or no"])
def test_a_reply_that_says_neither_is_wrong(reply):
    assert told("Does it move left?", "No", reply) is told("Does it move left?", "Yes", reply) is False


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("有", "有", True),
        ("有", "没有", False),
        ("没有", "没有红色圆圈", True),
        ("是", "不是", False),
        ("是", "是的，有", True),
    ],
)
def test_yes_and_no_in_chinese(answer, reply, right):
    assert told("视频中有红色圆圈吗？", answer, reply) is right


def test_what_is_said_of_another_thing_is_no_denial():
    assert told("Is the circle red?", "No", "It is purple.") is True
    assert told("Is the circle red?", "No", "a purple star.") is told("Is the circle red?", "Yes", "a purple star.") is False


THREE = [
    "3", "three", "Three.", "THREE", "There are three dots.", "3 dots", "about 3", "The answer is 3.", "**3**", "\\boxed{3}",
    "3.0", "３", "I count 3 dots in total.", "There are 2 red and 1 blue dots, so 3 in total.", "3 (three)", "exactly three",
    "<think>1, 2, 3</think>3", "There are 3 dots and 2 squares", "not 2 but 3", "one, two, three: the answer is three", "三个",
]  # fmt: skip
NOT_THREE = [
    "2", "13", "30", "", "two", "none", "3 or 4", "2-3", "more than 3", "at least 3", "not 3", "thirty", "23", "3rd", "0.3",
    "3,000", "There are two dots and three squares", "between 2 and 4", "I cannot tell", "there are no dots", "-3", "3:30",
]  # fmt: skip


@pytest.mark.parametrize("answer", ["3", "three", "There are three dots."])
def test_a_number_in_every_form(answer):
    assert [reply for reply in THREE if told("How many dots appear?", answer, reply) is not True] == []
    assert [reply for reply in NOT_THREE if told("How many dots appear?", answer, reply) is not False] == []


@pytest.mark.parametrize(
    ("answer", "reply", "right"),
    [
        ("0", "none", True), ("0", "There are no dots.", True), ("1", "a single dot", True), ("21", "twenty-one", True),
        ("100", "a hundred", True), ("1,234", "1234", True), ("1234", "one thousand two hundred and thirty-four", True),
        ("12", "a dozen", True), ("12", "十二", True), ("2", "两个", True), ("2", "twice", True), ("50%", "50 percent", True),
        ("50%", "0.5", True), ("50%", "5%", False), ("3 minutes", "180 seconds", True), ("3 minutes", "3 seconds", False),
        ("3 seconds", "3s", True), ("$5", "5 dollars", True), ("1/2", "½", True), ("1.5 million", "1500000", True),
    ],
)  # fmt: skip
def test_numbers_in_words_and_units(answer, reply, right):
    assert told("How many?", answer, reply) is right


@pytest.mark.parametrize(
    ("question", "answer", "reply", "right"),
    [
        ("Which way?", "To the left.", "left", True),
        ("Which way?", "It moves left.", "It is moving leftwards", True),
        ("Which way does the square move?", "The square moves left.", "Left!", True),
        ("Which way does the square move?", "The square moves left.", "It moves to the right", False),
        ("What colour is the square?", "red", "The square is red.", True),
        ("What colour is the square?", "red", "blue", False),
        ("What colour is the square?", "red", "It is not red", False),
        ("Which appears first, the circle or the cross?", "The cross appears first.", "The cross.", True),
        ("Which appears first, the circle or the cross?", "The cross appears first.", "The circle appears first.", False),
        ("What is it?", "sofa", "couch", None),
        ("What is it?", "sofa", "", False),
        ("What does he do?", "A man walks a dog in the park.", "A person strolls with a dog.", None),
    ],
)
def test_a_short_answer_is_right_wrong_or_unknown(question, answer, reply, right):
    assert told(question, answer, reply) is right


@pytest.mark.parametrize(
    "case", [*cases("replies.jsonl"), *cases("forms.jsonl")], ids=lambda case: f"{case['question']} {case['answer']}"
)
def test_rows_of_every_kind_with_right_wrong_and_unknown_replies(case):
    for right, replies in ((True, case["right"]), (False, case["wrong"]), (None, case["unknown"])):
        judged = [told(case["question"], case["answer"], reply, options=tuple(case["options"])) for reply in replies]
        assert [reply for reply, found in zip(replies, judged, strict=True) if found is not right] == []


@pytest.mark.parametrize(
    ("question", "answer", "options", "kind"),
    [
        ("Which?", "b", ("a", "b"), "choice"),
        ("Is it red?", "Yes", (), "yes_no"),
        ("Who enters?", "No one.", (), "short"),
        ("How many dogs?", "Two dogs.", (), "number"),
        ("Who is there?", "Two dogs.", (), "short"),
        ("What is written?", "7", (), "number"),
        ("What appears?", "a 3D printer", (), "short"),
        ("What happens?", "A man opens the door, then leaves.", (), "free"),
    ],
)
def test_the_kind_is_found_from_the_row(question, answer, options, kind):
    assert kind_of(Example(id="k", video="v", question=question, answer=answer, options=options)) == kind


def test_a_row_may_say_of_which_kind_its_answer_is():
    row = {"id": "r", "video": "v.mp4", "question": "What is on it?", "answer": "three dots", "answer_type": "number"}
    assert parse_row(row)[1] == []
    assert told(row["question"], row["answer"], "3", answer_type="number") is True
    for wrong in ("choice", "yes_no", "essay"):
        assert [error.field for error in parse_row({**row, "answer_type": wrong})[1]] == ["answer_type"]
    with_options = {**row, "options": ["two dots", "three dots"]}
    assert parse_row({**with_options, "answer_type": "choice"})[1] == []
    [error] = parse_row(with_options)[1]  # "B" would be no number
    assert "of which a reply may name one by its letter; leave answer_type out, or options" in str(error)


def test_rows_without_the_field_are_stored_as_before_it_existed():
    assert stable_hash(OPEN.to_row()) == stable_hash(
        {
            "id": "o",
            "video": "v.mp4",
            "question": "Which way?",
            "answer": "To the left.",
            "options": (),
            "category": "",
            "caption": "",
        }
    )
    assert (
        Example.from_row(Example(id="a", video="v", question="q", answer="3", answer_type="number").to_row()).answer_type
        == "number"
    )


# Trust


def test_a_reply_that_says_less_is_above_every_reply_that_says_something_else():
    example = Example(
        id="t", video="v", question="What happens?", answer="A red square moves to the right side of the screen."
    )
    wrong = trust("A red square moves to the left side of the screen.", example)
    assert wrong < AGREES <= trust("Right.", example) < 1.0
    assert trust("A red square.", example) >= AGREES
    assert trust("It does not move right.", example) < AGREES


@pytest.mark.parametrize("text", ["红色的方块向右移动", "สี่เหลี่ยมเคลื่อนไปทางซ้าย", "赤い四角が左に動く"])
def test_text_without_spaces_overlaps_in_part(text):
    assert token_f1(text, text) == 1.0
    assert 0.5 < token_f1(text[:-2], text) < 1.0


# No change of form changes a verdict


EXAMPLES = [
    (CHOICE, ["A", "B", "C", "right", "left", "B. left", "A. right"]),
    (Example(id="l", video="v", question="Which way?", answer="D", options=LISTED), ["A", "B", "C", "D", "left", "down"]),
    (Example(id="y", video="v", question="Does it move?", answer="Yes"), ["Yes", "No"]),
    (Example(id="n", video="v", question="How many dots are there?", answer="No dots."), ["0", "none", "3", "two"]),
    (Example(id="3", video="v", question="How many dots are there?", answer="3"), ["3", "three", "4", "thirteen"]),
    (Example(id="w", video="v", question="How many times?", answer="twelve"), ["12", "twelve", "twenty", "2"]),
    (OPEN, ["left", "To the left.", "right", "not to the left"]),
    (
        Example(id="r", video="v", question="What colour is the car?", answer="red"),
        ["red", "The car is red", "blue", "not red"],
    ),
    (Example(id="z", video="v", question="这是什么颜色？", answer="红色"), ["红色", "它是红色的", "蓝色", "不是红色"]),
    (
        Example(id="zc", video="v", question="哪个？", answer="C", options=("A. 红色", "B. 蓝色", "C. 绿色")),
        ["C", "绿色", "选C", "A", "蓝色", "不是C"],
    ),
    (Example(id="zn", video="v", question="有几只猫？", answer="3"), ["三只", "3", "共有3只", "两只", "13"]),
]
FORMS = [
    str.upper,
    str.lower,
    lambda text: f"  {text}\n",
    lambda text: f"\n\n{text}\t ",
    lambda text: f"**{text}**",
    lambda text: f"`{text}`",
    lambda text: f"# {text}",
    lambda text: f"({text})",
    lambda text: f"[{text}]",
    lambda text: f'"{text}"',
    lambda text: f"{text}.",
    lambda text: f"{text}!",
    lambda text: f"{{{text}}}",
    lambda text: f"__{text}__",
    lambda text: f"> {text}",
    lambda text: f"- {text}",
    lambda text: f"```\n{text}\n```",
    lambda text: f"【{text}】",
    lambda text: f"Final answer: {text}",
    lambda text: f"**Answer:** {text}",
    lambda text: f"Based on the video, the answer is {text}.",
    lambda text: f"<thinking>Is it one or the other?</thinking>\n\n{text}",
    lambda text: f"I looked at every frame.</think>{text}",
    lambda text: json.dumps({"answer": text}, ensure_ascii=False),
    lambda text: f"{text} <|im_end|>",
    lambda text: f"\\text{{{text}}}",
    lambda text: f"The answer is {text}",
    lambda text: f"Answer: {text}",
    lambda text: f"The correct answer is: {text}.",
    lambda text: f"<answer>{text}</answer>",
    lambda text: f"<think>It may be something else.</think>{text}",
    lambda text: f"\\boxed{{{text}}}",
    lambda text: f"$\\boxed{{\\text{{{text}}}}}$",
    lambda text: f"{text}\n\nThis can be seen at the end of the video.",
    lambda text: f"{text}. This can be seen in the video.",
    lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
]


@settings(deadline=None)
@given(example=st.sampled_from(EXAMPLES), data=st.data())
def test_no_change_of_form_changes_a_verdict(example, data):
    row, replies = example
    reply = data.draw(st.sampled_from(replies))
    form = data.draw(st.sampled_from(FORMS))
    assert verdict(form(reply), row) is verdict(reply, row) is not None
    twice = data.draw(st.sampled_from(FORMS))
    assert verdict(twice(form(reply)), row) is verdict(reply, row)
    assert verdict(unicodedata.normalize("NFD", reply), row) is verdict(reply, row)


@settings(deadline=None)
@given(
    letter=st.sampled_from("ACD"),
    form=st.sampled_from(FORMS),
    rest=st.sampled_from(["", ". left", ". It is not B", ", not B", " because B is wrong"]),
)
def test_a_wrong_letter_never_becomes_right(letter, form, rest):
    assert chosen(form(letter + rest)) is False


@settings(deadline=None)
@given(st.text(max_size=60), st.sampled_from(EXAMPLES))
def test_any_text_gets_a_verdict_and_a_trust(text, example):
    assert verdict(text, example[0]) in (True, False, None)
    assert 0.0 <= trust(text, example[0]) <= 1.0


def test_the_public_door_takes_the_kind_where_the_row_does_not_show_it():
    asked = {"question": "What is on the shirt?", "answer": "seven stars"}
    assert vidalign.judge_reply("7", **asked) is None
    assert vidalign.judge_reply("7", **asked, answer_type="number") is True
    assert vidalign.judge_reply("8", **asked, answer_type="number") is False
