"""What arms do to the pairs of their recipe before they train on them. Each takes the data and pairs, and returns as many pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bench.quality.data import Data
from examples.events.phrases import retold
from examples.events.scorers import agreement
from vidalign.recipes.phrases import differing_marks
from vidalign.types import PreferencePair, stable_hash


def everything_marked(_: Data, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Marks that cover both responses whole, so that every token counts."""
    return [
        dataclasses.replace(pair, chosen_marks=((0, len(pair.chosen)),), rejected_marks=((0, len(pair.rejected)),))
        for pair in pairs
    ]


def plain_losers(data: Data, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """What the base says unasked as the rejected side, wherever it agrees less with the row's answer than the winner does.

    By as much less as the recipe asks of every pair; elsewhere the pair keeps its loser.
    """
    rows = {example.id: (example, said) for example, said in zip(data.examples("train"), data.plain_answers(), strict=True)}
    gap = data.task.recipes["leanpo"].min_trust_gap  # type: ignore[attr-defined]
    edited = []
    for pair in pairs:
        example, said = rows[pair.example_id]
        trust = agreement(said, example)
        if trust is not None and pair.chosen_trust - trust >= gap:
            pair = dataclasses.replace(pair, rejected=said, rejected_trust=trust, rejected_marks=())
        edited.append(pair)
    return edited


def parallel_losers(_: Data, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The events that the loser tells in the style and form of the winner, so that the sides differ in what they tell alone.

    A pair whose loser tells no whole events, or the winner's, keeps its loser.
    """
    edited = []
    for pair in pairs:
        told = retold(pair.rejected, pair.question, pair.chosen)
        if told is not None and any(marks := differing_marks(pair.chosen, told)):
            pair = dataclasses.replace(pair, rejected=told, chosen_marks=marks[0], rejected_marks=marks[1])
        edited.append(pair)
    return edited


def plain_and_parallel(data: Data, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """What the base says unasked as the loser, in the style and form of the winner."""
    return parallel_losers(data, plain_losers(data, pairs))


def plain_parallel_and_marked(data: Data, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The same, with marks that cover both responses whole."""
    return everything_marked(data, plain_and_parallel(data, pairs))


@dataclasses.dataclass(frozen=True)
class Flipped:
    """Sides swapped in a share of the pairs, as a judge does that errs; in which ones depends on the pair alone."""

    share: float

    def __call__(self, _: Data, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
        return [swapped(pair) if int(stable_hash(["flip", pair.id], 8), 16) / 16**8 < self.share else pair for pair in pairs]


def swapped(pair: PreferencePair) -> PreferencePair:
    """The pair with its sides, and all that belongs to them, exchanged."""
    sides: dict[str, Any] = {}
    for name in ("", "_marks", "_reward", "_trust", "_win_rate"):
        one, other = f"chosen{name}", f"rejected{name}"
        sides |= {one: getattr(pair, other), other: getattr(pair, one)}
    return dataclasses.replace(pair, **sides)
