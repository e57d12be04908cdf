"""Order of pairs and learning rates: functions of the step."""

import numpy as np
import pytest

from vidalign.errors import DataError
from vidalign.learning.batches import batch_order
from vidalign.learning.schedule import learning_rate_factor


def test_every_pair_is_seen_equally_often_up_to_the_last_step():
    order = np.concatenate(batch_order(num_groups=10, batch_size=4, num_epochs=2, seed=0))
    assert len(order) == 20
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    counts = np.bincount(np.concatenate(batch_order(num_groups=7, batch_size=4, num_epochs=1, seed=0)))
    assert counts.sum() == 8
    assert counts.min() == 1


def test_order_depends_on_the_seed_alone():
    first = batch_order(50, 8, 2, seed=1)
    assert all((a == b).all() for a, b in zip(first, batch_order(50, 8, 2, seed=1), strict=True))
    assert any((a != b).any() for a, b in zip(first, batch_order(50, 8, 2, seed=2), strict=True))


def test_no_pairs():
    with pytest.raises(DataError, match="no preference pair is left"):
        batch_order(0, 8, 1, seed=0)


def test_schedules_by_hand():
    linear = [learning_rate_factor(step, 10, 0.2, "linear") for step in range(10)]
    assert linear[:3] == [0.5, 1.0, 1.0]
    assert linear[-1] == pytest.approx(1 / 8)
    assert learning_rate_factor(6, 10, 0.2, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(9, 10, 0.2, "constant") == 1.0
    assert learning_rate_factor(0, 1, 0.1, "linear") == 1.0
