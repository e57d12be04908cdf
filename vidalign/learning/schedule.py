"""Learning-rate schedules as a pure function of the step."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, num_steps: int, warmup_ratio: float, schedule: str) -> float:
    """The share, in [0, 1], of the peak learning rate that optimizer step `step` (from 0) uses.

    Linear warmup over the first `warmup_ratio` of the steps, then constant, linear to 0, or cosine to 0. The first step's rate is
    never 0, which would waste it.
    """
    num_warmup = math.ceil(warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return 1.0
