"""The comparison on the built-in demo's task, shapes."""

from __future__ import annotations

from typing import Any

from bench.built_in import MODEL, SPEC
from bench.quality import edits
from bench.quality.arms import Arm, Task, by_name
from bench.quality.shapes_figures import measure
from examples.shapes import make_videos, rule_judge
from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipe import RecipeSection
from vidalign.config.recipes import HoundRecipe, LeanpoRecipe
from vidalign.config.rewriting import RrpoRecipe

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

SHAPES = Task(
    name="shapes",
    model=MODEL,
    spec=SPEC,
    sizes={"train": 240, "heldout": 600, "probe": 64, "dev": 280},
    recipes=RECIPES,
    arms=by_name(
        Arm("SFT", "leanpo", "sft"),
        Arm("DPO", "leanpo", "dpo"),
        Arm("SimPO", "leanpo", "simpo"),
        Arm("LeanPO", "leanpo", "leanpo"),
        Arm("RRPO", "rrpo", "rrpo"),
        Arm("Hound-DPO", "hound", "dpo"),
        Arm("cDPO", "leanpo", "cdpo"),
        Arm("rDPO", "leanpo", "rdpo"),
        Arm("IPO", "leanpo", "ipo"),
        Arm("RPO", "leanpo", "rpo"),
        Arm("MPO", "leanpo", "mpo"),
        Arm("alpha-DPO", "leanpo", "alpha_dpo"),
        Arm("ORPO", "leanpo", "orpo"),
        Arm("SPPO", "leanpo", "sppo"),
        Arm("EXPO", "leanpo", "expo"),
        Arm("BMC's loss on RRPO's pairs", "rrpo", "bmc"),
        Arm("LeanPO without hints", "leanpo_unhinted", "leanpo"),
        Arm("LeanPO without reflection", "leanpo_one_turn", "leanpo"),
        Arm("LeanPO without smoothing", "leanpo", "leanpo", {"label_smoothing": 0.0}),
        Arm("LeanPO without SFT term", "leanpo", "leanpo", {"sft_weight": 0.0}),
        Arm("RRPO without KL", "rrpo", "rrpo", {"alpha": 0.0}),
        Arm(
            "RRPO without refined reward",
            "rrpo",
            "rrpo",
            edit=edits.everything_marked,
            edited="every token marked",
        ),
        Arm("RRPO, alpha 0.1", "rrpo", "rrpo", {"alpha": 0.1}),
        Arm("RRPO, alpha 1", "rrpo", "rrpo", {"alpha": 1.0}),
        Arm("DPO on RRPO's pairs", "rrpo", "dpo"),
    ),
    rates=(1e-4, 3e-4),
    wider_rates=(1e-6, 3e-6, 1e-5, 3e-5, 1e-3, 3e-3, 1e-2),
    dev_seeds=(100, 101, 102),
    train={"num_epochs": 3, "batch_size": 16, "micro_batch_size": 16, "log_every": 20, "checkpoint_minutes": None},
    figure="accuracy",
    make_videos=make_videos.make,
    judge=rule_judge.judge,
    measure=measure,
)
