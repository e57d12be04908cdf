"""What is compared: data recipes, and arms that train an objective on the pairs of one of them. Plain data, no engine.

All arms train alike: the same number of epochs, batch size, schedule and starting policy. The learning rate of every method is
the one of `GRID` with the best accuracy on the dev split; an ablation trains at its method's learning rate.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipe import RecipeSection
from vidalign.config.recipes import HoundRecipe, LeanpoRecipe
from vidalign.config.rewriting import RrpoRecipe
from vidalign.types import PreferencePair

GRID = (3e-5, 1e-4, 3e-4, 1e-3)
SWEEP_SEED = 100  # a seed of its own: the runs that choose a learning rate are not among those reported
SIZES = {"train": 240, "heldout": 600, "probe": 64, "dev": 280}  # questions; splits share no video
SAMPLING: dict[str, Any] = {"num_candidates": 4, "max_new_tokens": 24}

RECIPES: dict[str, RecipeSection] = {
    "leanpo": LeanpoRecipe(num_turns=2, **SAMPLING),
    "leanpo_one_turn": LeanpoRecipe(num_turns=1, **SAMPLING),
    "leanpo_unhinted": LeanpoRecipe(num_turns=1, hints=False, **SAMPLING),
    "rrpo": RrpoRecipe(rewrite="policy", trust="f1", **{**SAMPLING, "max_new_tokens": 48}),
    "hound": HoundRecipe(
        judge=JudgeConfig(kind="openai", model="rules", base_url="http://127.0.0.1/v1", prompt=prompts.JUDGE), **SAMPLING
    ),
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the results. `method` is the arm whose learning rate it takes: itself, unless it is an ablation."""

    name: str
    recipe: str
    objective: str
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    ablates: str = ""
    mark_everything: bool = False

    @property
    def method(self) -> str:
        return self.ablates or self.name


ARMS = {
    arm.name: arm
    for arm in (
        Arm("SFT", "leanpo", "sft"),
        Arm("DPO", "leanpo", "dpo"),
        Arm("SimPO", "leanpo", "simpo"),
        Arm("LeanPO", "leanpo", "leanpo"),
        Arm("RRPO", "rrpo", "rrpo"),
        Arm("Hound-DPO", "hound", "dpo"),
        Arm("LeanPO without hints", "leanpo_unhinted", "leanpo", ablates="LeanPO"),
        Arm("LeanPO without reflection", "leanpo_one_turn", "leanpo", ablates="LeanPO"),
        Arm("LeanPO without smoothing", "leanpo", "leanpo", {"label_smoothing": 0.0}, ablates="LeanPO"),
        Arm("LeanPO without SFT term", "leanpo", "leanpo", {"sft_weight": 0.0}, ablates="LeanPO"),
        Arm("RRPO without KL", "rrpo", "rrpo", {"alpha": 0.0}, ablates="RRPO"),
        Arm("RRPO without refined reward", "rrpo", "rrpo", ablates="RRPO", mark_everything=True),
        Arm("RRPO, alpha 0.1", "rrpo", "rrpo", {"alpha": 0.1}, ablates="RRPO"),
        Arm("RRPO, alpha 1", "rrpo", "rrpo", {"alpha": 1.0}, ablates="RRPO"),
        Arm("DPO on RRPO's pairs", "rrpo", "dpo", ablates="RRPO"),
    )
}
METHODS = [arm.name for arm in ARMS.values() if not arm.ablates]


def edit_pairs(arm: Arm, pairs: list[PreferencePair]) -> list[PreferencePair]:
    """Without RRPO's refined reward every token counts: the pair's marks cover both responses whole."""
    if not arm.mark_everything:
        return pairs
    return [
        dataclasses.replace(pair, chosen_marks=((0, len(pair.chosen)),), rejected_marks=((0, len(pair.rejected)),))
        for pair in pairs
    ]
