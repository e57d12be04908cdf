"""Fair timing: the variants take turns in one run (A B C A B C …), and ratios are taken within a turn.

A machine's speed drifts by more than what is compared here, so a ratio of two times from different minutes says little. The
first turn warms up and does not count.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Median, minimum and maximum over the turns."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
        """The ratios within each turn."""
        ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def results_in_turns(
    variants: Mapping[str, Callable[[], T]], num_turns: int, *, warm_up: int = 1, show: bool = False
) -> dict[str, list[T]]:
    """What each variant returns in each counted turn; with `show`, every result is printed as it comes."""
    results: dict[str, list[T]] = {name: [] for name in variants}
    for turn in range(-warm_up, num_turns):
        for name, run in variants.items():
            result = run()
            if show:
                print(f"{name}: {result}", flush=True)
            if turn >= 0:
                results[name].append(result)
    return results


def take_turns(variants: Mapping[str, Callable[[], object]], num_turns: int, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each variant in each counted turn."""
    timed = {name: functools.partial(seconds_of, run) for name, run in variants.items()}
    return results_in_turns(timed, num_turns, warm_up=warm_up)


def seconds_of(run: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def speedup(seconds: Mapping[str, Sequence[float]], ours: str, other: str) -> Ratio:
    """How many times as long `other` takes as `ours`."""
    return Ratio.of(seconds[other], seconds[ours])
