"""Which groups every optimizer step, every rank and every forward takes: pure arithmetic on indices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vidalign.errors import DataError


def batch_order(num_groups: int, batch_size: int, num_epochs: int, seed: int) -> list[np.ndarray]:
    """Indices of the groups of every optimizer step, [batch_size] each, a function of its arguments alone.

    Epochs are joined into one stream, each shuffled anew, so no group is dropped at the end of an epoch. The last step is
    filled up from one more shuffled epoch.
    """
    if num_groups < 1:
        raise DataError("no preference pair is left to train on; see pairs.dropped in summary.json for the reasons")
    num_steps = -(-num_groups * num_epochs // batch_size)
    rng = np.random.default_rng(seed)
    num_shuffles = -(-num_steps * batch_size // num_groups)
    stream = np.concatenate([rng.permutation(num_groups) for _ in range(num_shuffles)])
    return list(stream[: num_steps * batch_size].reshape(num_steps, batch_size))


def micro_batches(
    own: np.ndarray,
    *,
    size: int,
    budget: int | None,
    num_tokens: Callable[[int], int],
    largest: Callable[[int], int],
) -> list[np.ndarray]:
    """One rank's groups of an optimizer step, forward by forward; equally many forwards on every rank.

    Args:
        own: [n] indices of this rank's groups, equally many on every rank.
        size: groups a forward where there is no `budget`; it divides n.
        budget: tokens that a forward may hold; a longer group goes alone.
        num_tokens: tokens of the group of an index, asked only where there is a budget.
        largest: the largest of the numbers that the ranks give it; every rank calls it once where there is a budget.
    """
    if budget is None:
        return list(own.reshape(-1, size))
    bins = pack([num_tokens(int(index)) for index in own], budget)
    return [own[rows] for rows in split_further(bins, largest(len(bins)))]


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows in as few bins of `budget` tokens as first fit, longest first, makes; a longer row has its own bin."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        fitting = next((place for place, free in enumerate(room) if free >= lengths[index]), None)
        if fitting is None:
            bins.append([])
            room.append(budget)
            fitting = len(bins) - 1
        bins[fitting].append(index)
        room[fitting] -= lengths[index]
    return bins


def split_further(bins: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The same rows in exactly `count` bins, `count` at least as many as there are and at most as many as rows."""
    made = [list(rows) for rows in bins]
    while len(made) < count:
        fullest = max(range(len(made)), key=lambda place: len(made[place]))
        rows = made[fullest]
        assert len(rows) > 1, f"{sum(map(len, bins))} rows in {count} bins"
        made[fullest : fullest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return made


def spread(count: int, size: int, rank: int, num_ranks: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows 0..count over all ranks, `size` a forward and equally many forwards on each.

    Yields:
        (rows [size], inside [size] bool): where a rank has nothing left, row 0 stands in and `inside` is False.
    """
    for first in range(0, count, size * num_ranks):
        rows = np.arange(first + rank * size, first + (rank + 1) * size)
        inside = rows < count
        yield np.where(inside, rows, 0), inside
