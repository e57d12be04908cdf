"""Displacement figures by hand, and the inputs they refuse."""

import math

import numpy as np
import pytest

from vidalign.errors import DataError
from vidalign.learning.displacement import displacement, side_displacement

PAIRS = {
    "chosen_start": [-1.0, -1.0, -1.0, -2.0],
    "rejected_start": [-1.5, -0.5, -2.0, -2.0],
    "chosen": [-0.5, -1.5, -2.0, -2.0],  # rose, fell, fell, unchanged
    "rejected": [-2.0, -1.0, -1.0, -3.0],  # fell, fell, rose, fell
}


def test_by_hand():
    figures = displacement(**PAIRS)
    assert figures == pytest.approx(
        {
            "chosen": -1.5,
            "rejected": -1.75,
            "chosen_change": -0.25,
            "rejected_change": -0.25,
            "chosen_fell": 0.5,
            "both_fell": 0.25,
            "margin": 0.25,
            "margin_change": 0.0,
            "accuracy": 0.5,
        }
    )
    assert all(type(figure) is float for figure in figures.values())


def test_with_a_probe_set_of_another_size():
    figures = displacement(**PAIRS, truth_start=np.array([-1.0, -2.0]), truth=np.array([-1.5, -1.8]))
    assert figures["truth"] == pytest.approx(-1.65)
    assert figures["truth_change"] == pytest.approx(-0.15)
    assert figures["truth_fell"] == 0.5
    assert side_displacement("truth", [-1.0, -2.0], [-1.5, -1.8]) == pytest.approx(
        {name: figures[name] for name in ("truth", "truth_change", "truth_fell")}
    )


def test_step_zero_shows_no_displacement():
    start = {"chosen_start": PAIRS["chosen"], "rejected_start": PAIRS["rejected"]}
    figures = displacement(**start, chosen=PAIRS["chosen"], rejected=PAIRS["rejected"])
    assert {figures[name] for name in ("chosen_change", "rejected_change", "chosen_fell", "both_fell", "margin_change")} == {
        0.0
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": []}, "one log-likelihood per pair in chosen"),
        ({"chosen": [[-1.0]]}, "one log-likelihood per pair in chosen"),
        ({"rejected": [-1.0, math.nan, -1.0, -1.0]}, r"rejected\[1\]=nan"),
        ({"chosen_start": [-1.0, -1.0, -1.0, -math.inf]}, r"chosen_start\[3\]=-inf"),
        ({"chosen": [-1.0]}, "chosen_start 4, rejected_start 4, chosen 1, rejected 4"),
        ({"truth": [-1.0]}, "in truth_start"),
        ({"truth": [-1.0], "truth_start": [-1.0, -1.0]}, "truth_start 2, truth 1"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(DataError, match=message):
        displacement(**{**PAIRS, **change})
