"""Which groups each optimizer step, rank and forward pass takes: pure arithmetic on indices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vidalign.errors import DataError


def batch_order(num_groups: int, batch_size: int, num_epochs: int, seed: int) -> list[np.ndarray]:
    """Indices [batch_size] of the groups of each optimizer step. The result depends on the arguments alone.

    Epochs are joined into one stream, each shuffled anew, so no group is lost at the end of an epoch. The last step is filled up
    from one more shuffled epoch.
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
    num_tokens: Callable[[Sequence[int]], Sequence[int]],
    largest: Callable[[int], int],
    most: int | None = None,
) -> list[np.ndarray]:
    """One rank's groups of an optimizer step, split into forward passes.

    Every rank gets the same number of them, but for one whose groups are fewer than the passes of others: it gets one for each.

    Args:
        own: [n] indices of this rank's groups.
        size: groups per forward pass if there is no `budget`.
        budget: how many tokens a forward pass may hold; a longer group goes alone.
        num_tokens: the numbers of tokens of the groups with these indices; called only if there is a budget.
        largest: returns the largest of the numbers that the ranks pass to it; every rank calls it once if there is a budget.
        most: the largest number of groups that a rank has; None: every rank has n.
    """
    if budget is None:
        bins = [list(rows) for rows in np.split(np.arange(len(own)), range(size, len(own), size))] if len(own) else []
        count = -(-(len(own) if most is None else most) // size)
    else:
        bins = pack(num_tokens(own.tolist()), budget)
        count = largest(len(bins))
    return [own[rows] for rows in split_further(bins, min(count, len(own)))]


def first_of(lengths: Sequence[int], *, size: int, budget: int | None) -> list[int]:
    """Rows of the first forward pass of `micro_batches`, as far as a rank knows it alone: others may need more passes."""
    return list(range(min(size, len(lengths)))) if budget is None else list(pack(lengths, budget)[0])


def pack(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack rows into bins of `budget` tokens by first fit, longest first; a longer row gets its own bin. Returns row indices."""
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
    """The same rows in exactly `count` bins; `count` is at least the number of bins and at most the number of rows."""
    made = [list(rows) for rows in bins]
    while len(made) < count:
        fullest = max(range(len(made)), key=lambda place: len(made[place]))
        rows = made[fullest]
        assert len(rows) > 1, f"{sum(map(len, bins))} rows in {count} bins"
        made[fullest : fullest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return made


def spread(count: int, size: int, rank: int, num_ranks: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Spread rows 0 to count - 1 over all ranks, `size` rows per forward pass and the same number of passes on each rank.

    Yields:
        (rows [size], inside [size] bool): if a rank has no rows left, row 0 stands in and `inside` is False.
    """
    for first in range(0, count, size * num_ranks):
        rows = np.arange(first + rank * size, first + (rank + 1) * size)
        inside = rows < count
        yield np.where(inside, rows, 0), inside
