"""What a comparison is made of: a task, data recipes, and arms that train an objective on the pairs of one of them. No engine.

All arms of a task train alike: the same number of epochs, batch size, schedule and starting policy. The learning rate of every
method is the one with the best figure on the dev split, mean over the task's dev seeds; an ablation trains at its method's rate.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from vidalign.config.recipe import RecipeSection
from vidalign.config.run import ModelConfig
from vidalign.types import FrameSpec, PreferencePair, stable_hash

BASE = "Base"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the results. `method` is the arm whose learning rate it takes: itself, unless it is an ablation.

    Attributes:
        mark_everything: the pairs' marks cover both responses whole, so that every token counts.
        chosen: what is trained on as the chosen side: the "pair"'s own, or the row's "answer".
        flips: share of the pairs whose sides are swapped, as a judge does that errs; which ones depends on the pair alone.
    """

    name: str
    recipe: str
    objective: str
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    ablates: str = ""
    mark_everything: bool = False
    chosen: Literal["pair", "answer"] = "pair"
    flips: float = 0.0

    @property
    def method(self) -> str:
        return self.ablates or self.name

    def edit(self, pairs: list[PreferencePair]) -> list[PreferencePair]:
        """The pairs as this arm trains on them."""
        if self.chosen == "answer":
            pairs = [dataclasses.replace(pair, chosen=pair.answer, chosen_marks=()) for pair in pairs]
        pairs = [swapped(pair) if is_flipped(pair, self.flips) else pair for pair in pairs]
        if self.mark_everything:
            pairs = [
                dataclasses.replace(pair, chosen_marks=((0, len(pair.chosen)),), rejected_marks=((0, len(pair.rejected)),))
                for pair in pairs
            ]
        return pairs


def is_flipped(pair: PreferencePair, flips: float) -> bool:
    """Whether a judge that errs in a share of the pairs errs in this one."""
    return int(stable_hash(["flip", pair.id], 8), 16) / 16**8 < flips


def swapped(pair: PreferencePair) -> PreferencePair:
    """The pair with its sides, and all that belongs to them, exchanged."""
    sides: dict[str, Any] = {}
    for name in ("", "_marks", "_reward", "_trust", "_win_rate"):
        one, other = f"chosen{name}", f"rejected{name}"
        sides |= {one: getattr(pair, other), other: getattr(pair, one)}
    return dataclasses.replace(pair, **sides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Videos with questions, a base, and what is compared on them.

    Attributes:
        sizes: number of questions a split; splits share no video.
        rates: learning rates that every method tries on every dev seed.
        wider_rates: rates beyond them, of which a method tries the next one while its best is the lowest or highest that it tried.
        dev_seeds: seeds of the runs that choose a learning rate; they are not among those reported.
        figure: the figure of a run's result by which rates are chosen.
        make_videos: writes so many questions a split into a folder.
        judge: the reply of the judge by rule to a prompt.
        measure: the figures of the model in a folder on a split of the data (`bench.quality.data.Data`).
    """

    name: str
    model: ModelConfig
    spec: FrameSpec
    sizes: Mapping[str, int]
    recipes: Mapping[str, RecipeSection]
    arms: Mapping[str, Arm]
    rates: tuple[float, ...]
    wider_rates: tuple[float, ...] = ()
    dev_seeds: tuple[int, ...]
    train: Mapping[str, Any]
    figure: str
    make_videos: Callable[[pathlib.Path, dict[str, int]], object]
    judge: Callable[[str], str]
    measure: Callable[[Any, str, str], dict[str, Any]]

    @property
    def methods(self) -> list[str]:
        """The arms that have a learning rate of their own."""
        return [arm.name for arm in self.arms.values() if not arm.ablates]


def by_name(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}
