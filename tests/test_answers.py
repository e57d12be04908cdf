"""Right answers: normalisation, the letters of multiple choice, hand-computed overlaps, and properties of any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidalign.data.answers import is_correct, token_f1
from vidalign.types import Example

OPEN = Example(id="o", video="v.mp4", question="Which way?", answer="To the left.")
CHOICE = Example(id="c", video="v.mp4", question="Which way?", answer="left", options=("right", "left", "a still one"))


@pytest.mark.parametrize("text", ["To the left.", "to the left", "  TO  the\nleft ! ", "“To the left”"])
def test_open_answer_ignores_case_space_and_final_punctuation(text):
    assert is_correct(text, OPEN)


@pytest.mark.parametrize("text", ["", " . ", "left", "not to the left", "To the left. Or right.", "B"])
def test_open_answer_is_an_exact_match(text):
    assert not is_correct(text, OPEN)


@pytest.mark.parametrize("text", ["B", "b", "B.", "(B)", "B)", "B:", "B. left", "(B) Left.", "B - left", "left", "Left."])
def test_multiple_choice_accepts_letter_text_and_both(text):
    assert is_correct(text, CHOICE)


@pytest.mark.parametrize(
    "text", ["", "A", "(A)", "D", "B. right", "A. left", "right", "A or B", "left or right", "Because", "b left it"]
)
def test_multiple_choice_refuses_other_options_and_hedging(text):
    assert not is_correct(text, CHOICE)


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
