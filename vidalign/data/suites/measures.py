"""The numbers of a suite's table, each with a 95 % interval, and by how much two models differ.

A number is a statistic of sums: every unit (a question, or a group that counts together) gives a vector, the vectors are summed, and
the statistic turns the sums into the number. Intervals come from resampling the videos, since questions on one video are not
independent (cluster bootstrap, Efron and Tibshirani 1993, section 8.4); where each unit has its own video and counts as right or
wrong, from Wilson's formula.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from vidalign.data.suites.question import SuiteQuestion
from vidalign.statistics import cluster_bootstrap, wilson_interval
from vidalign.types import Record

Where: TypeAlias = Callable[[SuiteQuestion], bool]
Kind: TypeAlias = Callable[[SuiteQuestion], str]
Statistic: TypeAlias = Callable[[Any], Any]  # sums, float64 [..., K] ─► numbers, float64 [...]; NaN where it is not defined


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mark:
    """What the reply to one question is worth. `values` are empty where the rule read no answer in it."""

    question: SuiteQuestion
    values: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """What counts as one. `cluster`: what its video is called; `sums`: its part of the sums [K]."""

    key: str
    cluster: str
    sums: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One number: how it is called, the units of some marks, and the statistic of their sums.

    `counts` says what a unit is, in the plural; `top` is the best value, 1 for a share.
    """

    name: str
    units: Callable[[Sequence[Mark]], list[Unit]]
    statistic: Statistic
    counts: str = "questions"
    top: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Record):
    """The value of a measure, None where there are no units; `low` and `high` bound its 95 % interval."""

    measure: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    counts: str
    top: float


def score(measure: Measure, marks: Sequence[Mark]) -> Score:
    """The value of a measure on these marks."""
    units = measure.units(marks)
    value, low, high = _estimate(units, measure)
    return Score(measure=measure.name, value=value, low=low, high=high, n=len(units), counts=measure.counts, top=measure.top)


def difference(measure: Measure, before: Sequence[Mark], after: Sequence[Mark]) -> Score:
    """By how much `after` is above `before`, on the units that both have."""
    first = {unit.key: unit for unit in measure.units(before)}
    second = {unit.key: unit for unit in measure.units(after)}
    both = [
        Unit(key=key, cluster=unit.cluster, sums=(*unit.sums, *second[key].sums))
        for key, unit in first.items()
        if key in second
    ]

    def gap(sums: Any) -> Any:
        half = sums.shape[-1] // 2
        return measure.statistic(sums[..., half:]) - measure.statistic(sums[..., :half])

    value, low, high = _bootstrapped(both, gap)
    return Score(measure=measure.name, value=value, low=low, high=high, n=len(both), counts=measure.counts, top=measure.top)


def of_task(task: str) -> Where:
    """Accepts the questions of one task."""
    return lambda question: question.task == task


def mean(
    name: str,
    value: str = "correct",
    *,
    where: Where = lambda question: True,
    top: float = 1.0,
) -> Measure:
    """The mean of one value over the questions that `where` accepts."""

    def units(marks: Sequence[Mark]) -> list[Unit]:
        chosen = [mark for mark in marks if where(mark.question)]
        return [_unit(mark.question, (mark.values.get(value, 0.0), 1.0)) for mark in chosen]

    return Measure(name=name, units=units, statistic=mean_of_shares, top=top)


def mean_of_means(
    name: str,
    key: Kind,
    questions: Sequence[SuiteQuestion],
    value: str = "correct",
    *,
    top: float = 1.0,
) -> Measure:
    """The mean of the means of each kind of question; a question whose kind is "" is left out."""
    kinds = list(dict.fromkeys(kind for question in questions if (kind := key(question))))

    def units(marks: Sequence[Mark]) -> list[Unit]:
        found = []
        for mark in marks:
            kind = key(mark.question)
            if kind:
                own = (mark.values.get(value, 0.0), 1.0)
                found.append(_unit(mark.question, tuple(x for k in kinds for x in (own if k == kind else (0.0, 0.0)))))
        return found

    return Measure(name=name, units=units, statistic=mean_of_shares, top=top)


def together(
    name: str,
    questions: Sequence[SuiteQuestion],
    *,
    where: Where = lambda question: True,
    counts: str = "pairs",
) -> Measure:
    """The share of groups all of whose questions are answered rightly. A group with a question that has no mark does not count."""
    members = _members(questions, where)

    def units(marks: Sequence[Mark]) -> list[Unit]:
        found = []
        for group, own in _whole(marks, members).items():
            right = all(mark.values.get("correct", 0.0) == 1.0 for mark in own)
            found.append(Unit(key=group, cluster=own[0].question.video, sums=(float(right), 1.0)))
        return found

    return Measure(name=name, units=units, statistic=mean_of_shares, counts=counts)


def mean_together(name: str, key: Kind, questions: Sequence[SuiteQuestion]) -> Measure:
    """The mean over kinds of question of the share of groups that are answered rightly as a whole."""
    members = _members(questions, lambda question: bool(key(question)))
    kinds = list(dict.fromkeys(kind for question in questions if (kind := key(question))))

    def units(marks: Sequence[Mark]) -> list[Unit]:
        found = []
        for group, own in _whole(marks, members).items():
            right = float(all(mark.values.get("correct", 0.0) == 1.0 for mark in own))
            kind = key(own[0].question)
            sums = tuple(x for k in kinds for x in ((right, 1.0) if k == kind else (0.0, 0.0)))
            found.append(Unit(key=group, cluster=own[0].question.video, sums=sums))
        return found

    return Measure(name=name, units=units, statistic=mean_of_shares, counts="pairs")


def breakdown(questions: Sequence[SuiteQuestion], *names: str, value: str = "correct", top: float = 1.0) -> list[Measure]:
    """A mean for each value of the named keys, in the order in which the questions have them."""
    found = []
    for name in names:
        for kind in dict.fromkeys(question.keys[name] for question in questions if question.keys.get(name)):
            found.append(mean(f"{name}: {kind}", value, where=_has(name, kind), top=top))
    return found


def _has(name: str, kind: str) -> Where:
    return lambda question: question.keys.get(name) == kind


def mean_of_shares(sums: Any) -> Any:
    """[..., 2K] of (points, count) of each kind ─► the mean over the kinds that have any of points / count."""
    import numpy as np

    pairs = sums.reshape(*sums.shape[:-1], -1, 2)
    points, count = pairs[..., 0], pairs[..., 1]
    shares = np.where(count > 0, points / np.where(count > 0, count, 1), np.nan)
    with np.errstate(invalid="ignore"):
        known = (count > 0).sum(-1)
        return np.where(known > 0, np.nansum(shares, -1) / np.where(known > 0, known, 1), np.nan)


def _unit(question: SuiteQuestion, sums: tuple[float, ...]) -> Unit:
    return Unit(key=question.id, cluster=question.video, sums=sums)


def _members(questions: Sequence[SuiteQuestion], where: Where) -> Mapping[str, frozenset[str]]:
    found: dict[str, set[str]] = collections.defaultdict(set)
    for question in questions:
        if question.group and where(question):
            found[question.group].add(question.id)
    return {group: frozenset(ids) for group, ids in found.items()}


def _whole(marks: Sequence[Mark], members: Mapping[str, frozenset[str]]) -> dict[str, list[Mark]]:
    """The groups all of whose questions have a mark."""
    by_group: dict[str, list[Mark]] = collections.defaultdict(list)
    for mark in marks:
        if mark.question.id in members.get(mark.question.group, ()):
            by_group[mark.question.group].append(mark)
    return {group: own for group, own in by_group.items() if len(own) == len(members[group])}


def _estimate(units: Sequence[Unit], measure: Measure) -> tuple[float | None, float | None, float | None]:
    clusters = {unit.cluster for unit in units}
    is_share = measure.statistic is mean_of_shares and all(unit.sums in ((0.0, 1.0), (1.0, 1.0)) for unit in units)
    if is_share and len(clusters) == len(units) and units:
        right = round(sum(unit.sums[0] for unit in units))
        return right / len(units), *wilson_interval(right, len(units))
    value, low, high = _bootstrapped(units, measure.statistic)
    if is_share and value is not None and low == high:  # all alike: resampling knows nothing of what it has not seen
        low, high = wilson_interval(round(value * len(clusters)), len(clusters))
    return value, low, high


def _bootstrapped(units: Sequence[Unit], statistic: Statistic) -> tuple[float | None, float | None, float | None]:
    """The statistic and its interval; None where it is not defined, and no interval for fewer than two clusters."""
    import numpy as np

    if not units:
        return None, None, None
    names = {cluster: index for index, cluster in enumerate(dict.fromkeys(unit.cluster for unit in units))}
    sums = np.zeros((len(names), len(units[0].sums)))
    np.add.at(sums, [names[unit.cluster] for unit in units], np.array([unit.sums for unit in units], dtype=float))
    value = float(statistic(sums.sum(0)))
    if not np.isfinite(value):
        return None, None, None
    low, high = cluster_bootstrap(sums, statistic) or (None, None)
    return value, low, high
