"""Correlation, intervals and shares of correct answers against hand-computed and published numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidalign.statistics import accuracy_table, rank_correlation, wilson_interval
from vidalign.types import EvalAnswer


def test_rank_correlation_sees_order_only_and_knows_where_it_is_undefined():
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 10_000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # ranks 1,2,3,4 against 2,1,4,3: 1 - 6·4/(4·15)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)
    assert rank_correlation([1, 2], [1, 2]) is None
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="finite"):
        rank_correlation([1, 2, math.nan], [1, 2, 3])
    with pytest.raises(ValueError, match="equally long"):
        rank_correlation([1, 2, 3], [1, 2])


def test_wilson_interval_of_a_known_case():
    # 8 of 10: the published score interval is 0.490 to 0.943
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 5)[0] == 0.0
    assert wilson_interval(5, 5)[1] == 1.0
    with pytest.raises(ValueError, match="between 0 and total"):
        wilson_interval(3, 2)


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_interval_holds_the_share(correct, total):
    correct = min(correct, total)
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1


def test_accuracy_table_counts_overall_and_by_category():
    table = accuracy_table([_answer("motion", True), _answer("motion", False), _answer("colour", True)])
    assert (table["correct"], table["total"], table["accuracy"]) == (2, 3, pytest.approx(2 / 3))
    assert list(table["by_category"]) == ["colour", "motion"]
    motion = table["by_category"]["motion"]
    assert (motion["correct"], motion["total"], motion["accuracy"]) == (1, 2, 0.5)
    assert (motion["low"], motion["high"]) == wilson_interval(1, 2)
    assert accuracy_table([])["accuracy"] is None


def _answer(category: str, correct: bool) -> EvalAnswer:
    return EvalAnswer(
        example_id="e",
        category=category,
        video="v",
        question="q",
        answer="a",
        text="t",
        correct=correct,
        model_id="base",
        policy_version="p",
        latency_s=0.1,
    )
