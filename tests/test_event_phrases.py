"""Reading answers about events, and scoring them by what they tell."""

import dataclasses

import pytest

from examples.events.phrases import mark, matched
from examples.events.reading import Said, read
from examples.events.scorers import agreement, phrase_f1
from examples.events.world import UNSEEN_KINDS
from vidalign.types import Example

TRUTH = (
    "First a small red square moves up, then a large green triangle moves left, and finally a small blue circle moves down"
)
PLAIN = Example(id="a", video="v.mp4", question="What happens in the video?", answer=f"{TRUTH}.", caption=f"{TRUTH}.")
COUNT = dataclasses.replace(PLAIN, question="How many things are small?", answer=f"{TRUTH}, so two things are small.")
ABSENT = dataclasses.replace(
    PLAIN, question="Which colour is absent: red, yellow or blue?", answer=f"{TRUTH}, so nothing is yellow."
)
LAST = dataclasses.replace(
    PLAIN,
    question="Which thing comes last? Think first.",
    answer=f"<think> {TRUTH} </think> The small blue circle comes last.",
    category="reasoning",
)
IN_FULL = ("small red square up", "large green triangle left", "small blue circle down")


def told(text, question=""):
    return [" ".join(said.stated().values()) for said in read(text, question).events]


@pytest.mark.parametrize(
    "text",
    [
        f"{TRUTH}.",
        "First a square, small and red, goes up, then a triangle, large and green, goes left, and finally a circle, small and "
        "blue, goes down.",
        "There is a red square of small size heading up; there is a green triangle of large size heading left; there is a blue "
        "circle of small size heading down.",
        "A little red box moves upwards. Next, a big green triangle goes from right to left. Lastly a tiny blue disc moves from "
        "top to bottom.",
        "Before a large green triangle moves left, a small red square moves up. The last thing is a small blue circle moving down.",
        "A large green triangle moves left after a small red square moves up. A small blue circle goes down.",
        "A red square appears. It is small. It moves up. The second thing is a large, green triangle which crosses the frame to "
        "the left. Then comes a circle. The circle is blue and small and moves downward.",
        "The last thing is a small blue circle moving down. The first thing is a small red square moving up. The second thing is "
        "a large green triangle moving left.",
        "**Small red square**: up\n**Large green triangle**: left\n**Small blue circle**: down",
        "Small red square: up. Large green triangle: left. Small blue circle: down.",
        "SMALL RED SQUARE MOVES UP, LARGE GREEN TRIANGLE MOVES LEFT, SMALL BLUE CIRCLE MOVES DOWN",
        "The video shows three things: a small red square moves up; a large green triangle moves left; a small blue circle moves "
        "down.",
        "Moving up, a small red square; moving left, a large green triangle; moving down, a small blue circle.",
        "1. a small red square moving to the up\n2. a large green triangle moving to the left\n3. a small blue circle going down",
    ],
)
def test_a_right_answer_in_any_form_is_right(text):
    assert phrase_f1(text, PLAIN) == 1.0
    assert phrase_f1.measure([text], [PLAIN])["kendall_tau"] == 1.0


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (COUNT, "Two."),
        (COUNT, "2"),
        (COUNT, "There are two small things."),
        (COUNT, "Two of them are small."),
        (COUNT, "The answer is two."),
        (ABSENT, "Yellow."),
        (ABSENT, "The absent colour is yellow."),
        (ABSENT, "Nothing is yellow."),
        (ABSENT, "There is no yellow thing."),
        (ABSENT, "No object is yellow, so yellow is missing."),
        (LAST, "The small blue circle comes last."),
        (LAST, "The blue circle."),
        (LAST, "<think>I look at the last frames.</think> <answer>the circle, small and blue</answer>"),
        (LAST, f"{TRUTH}. The small blue circle comes last."),
        (LAST, f"<think>{TRUTH}</think> The last one is the blue circle moving down."),
    ],
)
def test_a_right_conclusion_is_right_with_and_without_its_list(row, text):
    assert mark(text, row).found >= 1
    figures = phrase_f1.measure([text], [row])
    assert figures["precision"] == 1.0
    assert figures["f1.conclusion"] == 1.0
    assert not figures.get("contradicts")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (COUNT, "Three."),
        (COUNT, "Nothing is small."),
        (ABSENT, "Blue."),
        (ABSENT, "Nothing is red."),
        (LAST, "The small red square comes last."),
        (LAST, "The large blue circle comes last."),
        (PLAIN, "A large yellow cross moves right."),
        (PLAIN, "A small purple star moves up."),
    ],
)
def test_a_wrong_answer_is_wrong(row, text):
    assert phrase_f1(text, row) == 0.0


def test_the_reader_keeps_what_happens_apart_from_what_does_not():
    assert told("A red circle moves left, so nothing is blue.") == ["red circle left"]
    assert dict(read("No thing moves up and the red circle does not move down.").counts) == {}
    assert dict(read("Nothing moves up.").counts) == {"up": 0}
    assert told("One red circle moves left and one blue square moves up.") == ["red circle left", "blue square up"]
    assert told("A blue square is preceded by a red circle.") == ["red circle", "blue square"]
    assert told("I cannot say.") == []


def test_figures_of_an_answer_with_errors_are_those_counted_by_hand():
    # Told: square right; triangle in the wrong colour; circle left out; a cross invented. The order is right.
    text = "First a small red square moves up, then a large red triangle moves left, and finally a large yellow cross moves right."
    figures = phrase_f1.measure([text], [PLAIN])
    assert figures["precision"] == round(1 / 3, 4)
    assert figures["recall"] == round(1 / 3, 4)
    assert figures["f1.colour"] == round(1 / 3, 4)
    assert figures["f1.shape"] == round(2 / 3, 4)
    assert figures["chair_i"] == round(1 / 3, 4)
    assert figures["chair_s"] == figures["chair_v"] == 1.0
    assert figures["omitted"] == round(1 / 3, 4)
    assert figures["kendall_tau"] == 1.0
    assert figures["exact"] == 0.0
    assert figures["words"] == len(text.split())


def test_order_is_kendalls_tau_of_matched_events():
    for order, tau in (((0, 1, 2), 1.0), ((0, 2, 1), round(1 / 3, 4)), ((2, 1, 0), -1.0)):
        text = "; ".join(IN_FULL[index].replace(" up", " moves up") for index in order)
        assert phrase_f1.measure([text], [PLAIN])["kendall_tau"] == tau


def test_an_event_with_two_errors_is_invented_and_one_with_one_is_not():
    truth = [Said("small", "red", "square", "up")]
    assert matched([Said("small", "red", "square", "down")], truth).pairs == ((0, 0, 1),)
    assert matched([Said("small", "blue", "square", "down")], truth).pairs == ()
    assert matched([Said(shape="square", colour="red")], truth).pairs == ((0, 0, 0),)
    assert matched([Said(shape="square", colour="blue")], truth).pairs == ()


def test_an_event_told_twice_is_right_once():
    assert mark(f"{TRUTH}, and a small red square moves up.", PLAIN).invented == 1


def test_a_conclusion_that_contradicts_its_list_is_counted():
    wrong = f"<think> {TRUTH} </think> The large green triangle comes last."
    assert phrase_f1.measure([wrong], [LAST])["contradicts.reasoning"] == 1.0
    assert phrase_f1.measure([LAST.answer], [LAST])["contradicts.reasoning"] == 0.0
    assert phrase_f1.measure([f"{TRUTH}, so three things are small."], [COUNT])["contradicts"] == 1.0
    assert phrase_f1.measure([COUNT.answer, ABSENT.answer], [COUNT, ABSENT])["contradicts"] == 0.0


def test_seen_and_unseen_kinds_are_recalled_apart():
    shape, colour, direction = min(UNSEEN_KINDS)
    unseen = f"a small {colour} {shape} moves {direction}"
    row = dataclasses.replace(PLAIN, answer=f"{unseen}; a large red circle moves left")
    row = dataclasses.replace(row, caption=row.answer)
    figures = phrase_f1.measure([unseen], [row])
    assert (figures["recall.seen"], figures["recall.unseen"]) == (0.0, 1.0)


def test_what_is_not_understood_has_no_score_and_counts_as_telling_nothing():
    assert phrase_f1("Lorem ipsum.", PLAIN) is None
    assert agreement("Lorem ipsum.", PLAIN) is None
    figures = phrase_f1.measure(["Lorem ipsum.", PLAIN.answer], [PLAIN, PLAIN])
    assert (figures["not_understood"], figures["recall"], figures["precision"]) == (0.5, 0.5, 1.0)


def test_agreement_goes_by_the_rows_own_answer():
    hint = dataclasses.replace(PLAIN, answer=PLAIN.answer.replace("red", "blue"))
    assert agreement(hint.answer, hint) == 1.0
    assert agreement(PLAIN.answer, hint) == pytest.approx(11 / 12)
    assert phrase_f1(PLAIN.answer, dataclasses.replace(hint, answer=PLAIN.answer)) == 1.0


def test_reasoning_that_was_cut_off_answers_nothing():
    figures = phrase_f1.measure([f"<think> {TRUTH}"], [LAST])
    assert figures["f1.conclusion"] == 0.0
    assert figures["recall"] == 0.75
