"""What a comparison is made of: a task, data recipes, and arms that train an objective on the pairs of one of them. No engine.

All arms of a task train alike: the same number of epochs, batch size, schedule and starting policy. The learning rate of every
arm, ablations too, is the one with the best figure on the dev split, mean over the task's dev seeds.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vidalign.config.degrading import ClipPairsConfig
from vidalign.config.recipe import RecipeSection
from vidalign.config.run import ModelConfig
from vidalign.types import FrameSpec, PreferencePair

BASE = "Base"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the results, at the learning rate that is best for it.

    Attributes:
        clip_pairs: which pairs over videos are made of the recipe's pairs, alone or beside them.
        edit: what is done to the recipe's pairs before it trains on them, of `bench.quality.edits`; the page says `edited`.
    """

    name: str
    recipe: str
    objective: str
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    clip_pairs: ClipPairsConfig | None = None
    edit: Callable[[Any, list[PreferencePair]], list[PreferencePair]] | None = None
    edited: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Videos with questions, a base, and what is compared on them.

    Attributes:
        sizes: number of questions a split; splits share no video.
        rates: learning rates that every arm tries on every dev seed.
        wider_rates: rates beyond them, of which an arm tries the next one while its best is the lowest or highest that it tried.
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


def by_name(*arms: Arm) -> dict[str, Arm]:
    return {arm.name: arm for arm in arms}
