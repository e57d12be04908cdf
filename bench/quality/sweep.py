"""Which learning rate an arm takes: the one with the best figure on the dev split, mean over the task's dev seeds."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Collection

from bench.quality.arms import Task
from bench.quality.run import Job


def tried(task: Task, root: pathlib.Path, arm: str) -> dict[float, list[float]]:
    """{learning rate: the dev figure of each dev seed} of the rates that are finished, lowest rate first."""
    return {rate: values for rate, values in _begun(task, root, arm).items() if len(values) == len(task.dev_seeds)}


def _begun(task: Task, root: pathlib.Path, arm: str) -> dict[float, list[float]]:
    """{learning rate: the dev figure of each dev seed that is finished} of all rates, lowest rate first."""
    found = {}
    for rate in sorted({*task.rates, *task.wider_rates}):
        results = [result for seed in task.dev_seeds if (result := Job(arm, seed, rate, "dev").result(root))]
        found[rate] = [float(result[task.figure]) for result in results]
    return found


def dev_figures(task: Task, root: pathlib.Path, arms: Collection[str]) -> dict[str, dict[str, list[float]]]:
    """What `tried` gives for each of these arms, in the task's order and with rates as text, as pages keep it."""
    return {
        name: {f"{rate:g}": values for rate, values in tried(task, root, name).items()} for name in task.arms if name in arms
    }


def best_rate(task: Task, root: pathlib.Path, arm: str) -> float:
    """The rate with the best mean; of equals the lowest."""
    means = {rate: statistics.fmean(values) for rate, values in tried(task, root, arm).items()}
    return max(means, key=lambda rate: (means[rate], -rate))


def missing_rates(task: Task, root: pathlib.Path, arm: str) -> list[float]:
    """The rates that an arm must still try: those of the task, then both neighbours of its best one, where there are any.

    And those that are better so far, by the dev seeds that have tried them where others have not.
    """
    known = tried(task, root, arm)
    if first := [rate for rate in task.rates if rate not in known]:
        return first
    begun, best = _begun(task, root, arm), best_rate(task, root, arm)
    ladder = list(begun)
    place, mean = ladder.index(best), statistics.fmean(known[best])
    better = {rate for rate, values in begun.items() if values and statistics.fmean(values) > mean}
    beside = ladder[max(0, place - 1) : place + 2]
    return [rate for rate in ladder if rate not in known and (rate in better or rate in beside)]


def is_swept(task: Task, root: pathlib.Path, arm: str) -> bool:
    """Whether nothing is missing before an arm's rate is chosen."""
    return not missing_rates(task, root, arm)
