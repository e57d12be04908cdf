"""Order of groups, forwards and learning rates: functions of the step and of the rank."""

import numpy as np
import pytest

from vidalign.errors import DataError
from vidalign.learning.batches import batch_order, first_of, micro_batches, spread
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


def test_forwards_are_cut_by_number_or_by_tokens():
    own = np.array([7, 3, 5, 1])
    by_size = micro_batches(own, size=2, budget=None, num_tokens=never, largest=never)
    assert [rows.tolist() for rows in by_size] == [[7, 3], [5, 1]]
    asked = []

    def largest(number):
        asked.append(number)
        return 3  # another rank has longer groups

    by_tokens = micro_batches(own, size=2, budget=12, num_tokens=lambda rows: rows, largest=largest)
    assert asked == [2]
    assert len(by_tokens) == 3
    assert sorted(np.concatenate(by_tokens)) == [1, 3, 5, 7]
    assert all(rows.sum() <= 12 for rows in by_tokens)


def never(_):
    raise AssertionError("not asked where forwards are cut by number")


@pytest.mark.parametrize("count", [0, 1, 4, 5, 12])
@pytest.mark.parametrize(("size", "num_ranks"), [(1, 1), (2, 3), (5, 2)])
def test_measured_rows_are_spread_over_ranks_in_equally_many_forwards(count, size, num_ranks):
    spreads = [list(spread(count, size, rank, num_ranks)) for rank in range(num_ranks)]
    assert len({len(forwards) for forwards in spreads}) == 1
    measured = [row for forwards in spreads for rows, inside in forwards for row in rows[inside]]
    assert sorted(measured) == list(range(count))
    assert all(len(rows) == size for forwards in spreads for rows, _ in forwards)


def test_the_first_forward_pass_is_known_before_the_ranks_have_agreed():
    own = np.array([5, 3, 9, 4])
    for options in ({"size": 2, "budget": None}, {"size": 1, "budget": 12}):
        found = micro_batches(own, **options, num_tokens=lambda rows: rows, largest=lambda number: number)
        assert own[first_of(own.tolist(), **options)].tolist() == found[0].tolist()


@pytest.mark.parametrize(("num_groups", "size", "num_ranks"), [(4, 1, 3), (8, 2, 3), (16, 2, 5), (2, 1, 3), (6, 2, 4)])
def test_a_number_of_ranks_that_does_not_divide_the_batch_splits_it_too(num_groups, size, num_ranks):
    indices, most = np.arange(100, 100 + num_groups), -(-num_groups // num_ranks)
    for budget in (None, 20):
        tokens = {"budget": budget, "num_tokens": lambda rows: [10] * len(rows)}
        own = [indices[rank::num_ranks] for rank in range(num_ranks)]
        count = max(len(micro_batches(each, size=size, largest=lambda n: n, most=most, **tokens)) for each in own)
        made = [
            micro_batches(each, size=size, largest=lambda _, most_passes=count: most_passes, most=most, **tokens)
            for each in own
        ]
        assert sorted(row for forwards in made for rows in forwards for row in rows) == indices.tolist()
        assert all(len(forwards) == min(count, len(each)) for forwards, each in zip(made, own, strict=True))
        assert all(len(rows) for forwards in made for rows in forwards)
