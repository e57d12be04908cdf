"""Likelihood displacement: whether training lowers the likelihood of the responses it should make more likely.

A growing margin can hide that the chosen response itself becomes less likely (arXiv 2410.08847). These figures compare the
average log-likelihoods (nats per token) of fixed pairs, and of the ground truth of probe examples, with those at step 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidalign.errors import DataError


def displacement(
    *,
    chosen_start: Sequence[float],
    rejected_start: Sequence[float],
    chosen: Sequence[float],
    rejected: Sequence[float],
    truth_start: Sequence[float] | None = None,
    truth: Sequence[float] | None = None,
) -> dict[str, float]:
    """The figures of P pairs (and Q probe examples), from the average log-likelihood of each response.

    Args:
        chosen_start, rejected_start: [P] at step 0. chosen, rejected: [P] now, the same pairs in the same order.
        truth_start, truth: [Q] of the probe set's ground truths, at step 0 and now; both or neither.

    Returns:
        chosen, rejected (nats per token) and chosen_change, rejected_change since step 0; both_fell, chosen_fell: shares
        of the pairs; margin (chosen - rejected) and margin_change; accuracy: share with chosen above rejected. With a probe
        set also truth, truth_change and truth_fell.

    Raises:
        DataError: the inputs are empty, of unequal lengths, or not finite.
    """
    before = _column("chosen_start", chosen_start), _column("rejected_start", rejected_start)
    now = _column("chosen", chosen), _column("rejected", rejected)
    _same_length({"chosen_start": before[0], "rejected_start": before[1], "chosen": now[0], "rejected": now[1]})
    chosen_change, rejected_change = now[0] - before[0], now[1] - before[1]
    figures = {
        "chosen": now[0].mean(),
        "rejected": now[1].mean(),
        "chosen_change": chosen_change.mean(),
        "rejected_change": rejected_change.mean(),
        "chosen_fell": (chosen_change < 0).mean(),
        "both_fell": ((chosen_change < 0) & (rejected_change < 0)).mean(),
        "margin": (now[0] - now[1]).mean(),
        "margin_change": (chosen_change - rejected_change).mean(),
        "accuracy": (now[0] > now[1]).mean(),
    }
    if truth_start is not None or truth is not None:
        figures |= side_displacement("truth", () if truth_start is None else truth_start, () if truth is None else truth)
    return {name: float(figure) for name, figure in figures.items()}


def side_displacement(side: str, start: Sequence[float], now: Sequence[float]) -> dict[str, float]:
    """{side}, {side}_change and {side}_fell of `displacement`, if there is only one side, as in supervised training."""
    before, after = _column(f"{side}_start", start), _column(side, now)
    _same_length({f"{side}_start": before, side: after})
    change = after - before
    return {
        side: float(after.mean()),
        f"{side}_change": float(change.mean()),
        f"{side}_fell": float((change < 0).mean()),
    }


def _column(name: str, values: Sequence[float]) -> np.ndarray:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1 or not column.size:
        raise DataError(
            f"displacement needs one log-likelihood per pair in {name}, got shape {column.shape}; pass a flat list"
        )
    if not np.isfinite(column).all():
        row = int(np.flatnonzero(~np.isfinite(column))[0])
        raise DataError(f"displacement needs finite log-likelihoods, got {name}[{row}]={column[row]}; look at that response")
    return column


def _same_length(columns: dict[str, np.ndarray]) -> None:
    if len({len(column) for column in columns.values()}) != 1:
        lengths = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise DataError(
            f"displacement compares the same rows at two times, got lengths {lengths}; pass the same rows for both"
        )
