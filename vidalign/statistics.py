"""Correlation, win rates, confidence intervals (of single and clustered observations), shares of correct answers. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vidalign.types import EvalAnswer

_Z_95 = 1.959963984540054  # standard normal quantile at 0.975
_RESAMPLES, _AT_ONCE = 2000, 100


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two equally long sequences.

    Returns:
        A value in [-1, 1]; None when it is not defined: fewer than 3 points, or one side is constant.
    """
    if len(x) != len(y):
        raise ValueError(f"both sequences must be equally long, got {len(x)} and {len(y)}")
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    if not all(math.isfinite(a) and math.isfinite(b) for a, b in points):
        raise ValueError("ranks need finite numbers, got NaN or infinity; leave unscored responses out")
    if len(points) < 3 or len({a for a, _ in points}) == 1 or len({b for _, b in points}) == 1:
        return None
    from scipy import stats  # costs half a second to import

    result: Any = stats.spearmanr([a for a, _ in points], [b for _, b in points])
    return float(result.statistic)


def win_rates(scores: Sequence[float]) -> list[float]:
    """How often each of K responses is estimated to beat one of the K: mean over j of sigmoid(s_i - s_j), j = i included.

    Two scores of minus infinity are equal. Source: SPPO (arXiv 2405.00675), which estimates P(y beats the policy) from K samples.
    """

    def beats(own: float, other: float) -> float:
        gap = 0.0 if own == other else own - other
        return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0

    return [math.fsum(beats(own, other) for other in scores) / len(scores) for own in scores]


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927, score interval without continuity correction).

    Returns:
        (low, high), fractions in [0, 1]; (0.0, 1.0) when `total` is 0, since nothing is known then.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct must lie between 0 and total, got {correct} of {total}")
    if total == 0:
        return 0.0, 1.0
    share, z2 = correct / total, _Z_95**2
    centre = share + z2 / (2 * total)
    half = _Z_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    scale = 1 + z2 / total
    # At 0 and at `total` the exact bound is 0 and 1; rounding errors would leave it a hair outside or inside.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == total else (centre + half) / scale
    return low, high


def cluster_bootstrap(sums: Any, statistic: Callable[[Any], Any], *, seed: int = 0) -> tuple[float, float] | None:
    """95 % interval of a statistic of sums, by resampling clusters of observations that are not independent (percentile bootstrap).

    Args:
        sums: float64 [C, K], one row a cluster.
        statistic: sums [..., K] ─► values [...]; NaN where it is not defined, which is then left out.

    Returns:
        (low, high); None with fewer than two clusters, where nothing can be resampled. The same numbers every time.
    """
    import numpy as np

    count = len(sums)
    if count < 2:
        return None
    draw = np.random.default_rng(seed)
    shares = np.full(count, 1 / count)
    values = [statistic(draw.multinomial(count, shares, size=_AT_ONCE) @ sums) for _ in range(_RESAMPLES // _AT_ONCE)]
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def accuracy_table(answers: Sequence[EvalAnswer]) -> dict[str, Any]:
    """Accuracy overall and by category, of the answers that were scored, and which scorer that was.

    Returns:
        {"accuracy", "correct", "total", "asked", "low", "high", "by_category": {name: the same six keys}, "scored_by", "f1"};
        categories in alphabetical order; "total" counts the scored answers and "asked" all; "accuracy" is None when none was
        scored; low and high bound the 95 % Wilson interval. "scored_by": {kind: {scorer: how many}}, "" for answers that none
        could score. "f1": {"mean", "total"} over short and free answers, whoever scored them.
    """
    groups: dict[str, list[EvalAnswer]] = {}
    for answer in answers:
        groups.setdefault(answer.category, []).append(answer)
    scored_by: dict[str, dict[str, int]] = {}
    for answer in answers:
        counts = scored_by.setdefault(answer.kind, {})
        scorer = "" if answer.correct is None else answer.scorer or "not recorded"
        counts[scorer] = counts.get(scorer, 0) + 1
    overlaps = [answer.f1 for answer in answers if answer.f1 is not None]
    return {
        **_row(answers),
        "by_category": {name: _row(groups[name]) for name in sorted(groups)},
        "scored_by": {kind: scored_by[kind] for kind in sorted(scored_by)},
        "f1": {"mean": math.fsum(overlaps) / len(overlaps) if overlaps else None, "total": len(overlaps)},
    }


def _row(answers: Sequence[EvalAnswer]) -> dict[str, Any]:
    scored = [answer.correct for answer in answers if answer.correct is not None]
    correct, total = sum(scored), len(scored)
    low, high = wilson_interval(correct, total)
    share = correct / total if total else None
    return {"accuracy": share, "correct": correct, "total": total, "asked": len(answers), "low": low, "high": high}
