"""How much better than its group each response is: pure arithmetic on rewards. NaN is the reward of a response that is left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STD_EPSILON = 1e-4
_ALIKE = 1e-9  # rewards are sums of a few terms, which rounding may tell apart


def group_advantages(rewards: Sequence[float], *, scale: bool) -> np.ndarray:
    """The advantage of each of a group's G responses [G], 0 for those that are left out and in a group that is all alike.

    A_i = R_i - mean or, with `scale`, (R_i - mean) / (std + 1e-4), over the responses that have a reward; std is the unbiased one.
    GRPO (arXiv 2402.03300, section 4.1.2), with the epsilon and the deviation of the common implementations; Dr.GRPO
    (arXiv 2503.20783) leaves out the deviation.
    """
    values = np.asarray(rewards, dtype=np.float64)
    advantages = np.zeros_like(values)
    if is_uniform(rewards):
        return advantages
    known = np.isfinite(values)
    centred = values[known] - values[known].mean()
    advantages[known] = centred / (values[known].std(ddof=1) + STD_EPSILON) if scale else centred
    return advantages


def is_uniform(rewards: Sequence[float]) -> bool:
    """Whether nothing can be learned by comparing these responses: the rewards that are known are alike, or fewer than two."""
    values = np.asarray(rewards, dtype=np.float64)
    known = values[np.isfinite(values)]
    return len(known) < 2 or bool(np.ptp(known) <= _ALIKE)
