"""Fair timing: the variants take turns in one run (A B C A B C …), and ratios are taken within a turn.

A machine's speed drifts by more than what is compared here, so a ratio of two times from different minutes says little. The
first turn warms up and does not count.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Median, minimum and maximum over the turns."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def take_turns(variants: Mapping[str, Callable[[], object]], num_turns: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each variant in each counted turn."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-warm_up, num_turns):
        for name, run in variants.items():
            began = time.perf_counter()
            run()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def speedup(seconds: Mapping[str, list[float]], ours: str, other: str) -> Ratio:
    """How many times as long `other` takes as `ours`."""
    ratios = [slow / fast for slow, fast in zip(seconds[other], seconds[ours], strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
