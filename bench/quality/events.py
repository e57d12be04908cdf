"""The comparison on the events task (examples/events/README.md): long answers, imperfect hints, scores by phrase.

The recipe is that of examples/events/align.yaml. All arms but those named by the turns train on the same pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from bench.quality import edits
from bench.quality.arms import BASE, Arm, Task, by_name
from bench.quality.events_figures import measure
from examples.events import make_videos, rule_judge
from examples.events.careless import NUM_FRAMES
from examples.events.train_base import MAX_NEW_TOKENS
from vidalign.config.degrading import AugmentConfig, ClipPairsConfig, PerturbConfig
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipe import RecipeSection
from vidalign.config.recipes import LeanpoRecipe
from vidalign.config.rewriting import RrpoRecipe
from vidalign.config.run import ModelConfig
from vidalign.types import FrameSpec

LEANPO: dict[str, Any] = {
    "num_candidates": 1,
    "max_new_tokens": MAX_NEW_TOKENS,
    "pair_rule": "hinted_vs_augmented",
    "trust": "examples.events.scorers:agreement",
    "min_trust_gap": 0.02,
}
RRPO: dict[str, Any] = {
    "num_candidates": 2,
    "max_new_tokens": MAX_NEW_TOKENS,
    "trust": LEANPO["trust"],
    "max_trust": 0.9,
}
RECIPES: dict[str, RecipeSection] = {
    "leanpo": LeanpoRecipe(num_turns=2, **LEANPO),
    "leanpo_one_turn": LeanpoRecipe(num_turns=1, **LEANPO),
    "leanpo_three_turns": LeanpoRecipe(num_turns=3, **LEANPO),
    "rrpo": RrpoRecipe(**RRPO),
    "dropped": RrpoRecipe(**RRPO, perturb=PerturbConfig(mask_area=None, shuffle="none", keep="drop", kept_share=0.5)),
    "segment": RrpoRecipe(**RRPO, perturb=PerturbConfig(mask_area=None, shuffle="none", keep="segment", kept_share=0.5)),
    "reversed": RrpoRecipe(**RRPO, perturb=PerturbConfig(mask_area=None, shuffle="reverse")),
    "bridged": RrpoRecipe(
        **RRPO, bridge="judge", judge=JudgeConfig(kind="openai", model="rules", base_url="http://127.0.0.1/v1")
    ),
}
VDPO = ClipPairsConfig(
    with_others="alone", augment=AugmentConfig(num_frames=NUM_FRAMES // 2, crop_scale=(0.1, 0.4), flip_probability=0.0)
)
MIXDPO = ClipPairsConfig(with_others="beside", perturb=PerturbConfig(mask_area=(0.25, 0.5), shuffle="reverse"))
FLIPS = 0.25
ERRING = edits.Flipped(FLIPS)
SWAPPED = f"sides swapped in {100 * FLIPS:g} % of the pairs"
PLAIN = "the base's own plain answer as the loser, where it agrees less with the hint than the winner"
PARALLEL = f"{PLAIN}; all losers told anew by rule in the style of the winner"
OF_LEANPO = {  # other objectives on LeanPO's pairs
    "SimPO": "simpo",
    "cDPO": "cdpo",
    "rDPO": "rdpo",
    "IPO": "ipo",
    "RPO": "rpo",
    "MPO": "mpo",
    "alpha-DPO": "alpha_dpo",
    "ORPO": "orpo",
    "SPPO": "sppo",
    "EXPO": "expo",
}
OF_HINTS = {  # methods whose winner is the row's own answer or, of BMC, a correction by it
    "TPO, dropped frames": Arm("TPO, dropped frames", "dropped", "dpo"),
    "TPO, one segment": Arm("TPO, one segment", "segment", "dpo"),
    "TEMPLE, reversed": Arm("TEMPLE, reversed", "reversed", "dpo"),
    "VDPO": Arm("VDPO", "rrpo", "dpo", clip_pairs=VDPO),
    "BMC": Arm("BMC", "bridged", "bmc"),
}
OF_BETAS = {  # each with the arm that has the default, of which they are a third and three times
    of: [Arm(f"{of}, beta {beta:g}", recipe, objective, {"beta": beta}) for beta in betas]
    for of, recipe, objective, betas in (
        ("DPO", "leanpo", "dpo", (0.03, 0.3)),
        ("LeanPO", "leanpo", "leanpo", (0.7, 6.0)),
        ("RRPO", "rrpo", "rrpo", (0.03, 0.3)),
    )
}
COMPARED = (  # of these arms the page says which is better
    ("SFT", BASE),
    ("DPO", BASE),
    ("LeanPO", BASE),
    ("LeanPO", "SFT"),
    ("LeanPO", "DPO"),
    ("SFT", "DPO"),
    ("LeanPO, plain losers", "LeanPO"),
    ("LeanPO, plain losers", "SFT"),
    ("DPO, plain losers", "DPO"),
    ("DPO, plain losers", "SFT"),
    ("SFT on the hints", BASE),
    ("SFT on the hints", "SFT"),
    ("LeanPO", "SFT on the hints"),
    ("LeanPO", "LeanPO, one turn"),
    ("LeanPO, three turns", "LeanPO"),
    ("LeanPO, three turns", "LeanPO, one turn"),
    ("RRPO", BASE),
    ("RRPO", "SFT"),
    ("RRPO", "SFT on the hints"),
    ("RRPO", "LeanPO"),
    ("RRPO", "RRPO, every token marked"),
    ("RRPO, parallel losers", "RRPO"),
    ("RRPO, parallel losers", "SFT on the hints"),
    ("RRPO, parallel losers", "RRPO, parallel losers, every token marked"),
    ("DPO, flipped", "DPO"),
    ("rDPO, flipped", "DPO, flipped"),
    ("cDPO, flipped", "DPO, flipped"),
    *((name, other) for name in OF_LEANPO for other in ("DPO", "SFT")),
    *((name, other) for name in OF_HINTS for other in (BASE, "DPO on RRPO's pairs")),
    ("DPO on RRPO's pairs", BASE),
    ("DPO on RRPO's pairs", "RRPO"),
    ("MixDPO", BASE),
    ("MixDPO", "DPO"),
    *((arm.name, of) for of, arms in OF_BETAS.items() for arm in arms),
    ("BMC", "BMC's loss on RRPO's pairs"),
)

EVENTS = Task(
    name="events",
    model=ModelConfig(path="examples/events/model", dtype="float32", max_model_len=512),
    spec=FrameSpec(num_frames=NUM_FRAMES, height=56, width=56),
    sizes={"train": 360, "heldout": 480, "probe": 32, "dev": 180},
    recipes=RECIPES,
    arms=by_name(
        Arm("SFT", "leanpo", "sft"),
        Arm("DPO", "leanpo", "dpo"),
        Arm("LeanPO", "leanpo", "leanpo"),
        Arm("LeanPO, plain losers", "leanpo", "leanpo", edit=edits.plain_losers, edited=PLAIN),
        Arm("DPO, plain losers", "leanpo", "dpo", edit=edits.plain_losers, edited=PLAIN),
        Arm("SFT on the hints", "rrpo", "sft"),
        Arm("LeanPO, one turn", "leanpo_one_turn", "leanpo"),
        Arm("LeanPO, three turns", "leanpo_three_turns", "leanpo"),
        Arm("RRPO", "rrpo", "rrpo"),
        Arm("RRPO, every token marked", "rrpo", "rrpo", edit=edits.everything_marked, edited="marks on whole responses"),
        Arm("RRPO, parallel losers", "rrpo", "rrpo", edit=edits.plain_and_parallel, edited=PARALLEL),
        Arm(
            "RRPO, parallel losers, every token marked",
            "rrpo",
            "rrpo",
            edit=edits.plain_parallel_and_marked,
            edited=f"{PARALLEL}; marks on whole responses",
        ),
        Arm("DPO, flipped", "leanpo", "dpo", edit=ERRING, edited=SWAPPED),
        Arm("rDPO, flipped", "leanpo", "rdpo", {"label_smoothing": FLIPS}, edit=ERRING, edited=SWAPPED),
        Arm("cDPO, flipped", "leanpo", "cdpo", {"label_smoothing": FLIPS}, edit=ERRING, edited=SWAPPED),
        *(Arm(name, "leanpo", objective) for name, objective in OF_LEANPO.items()),
        Arm("DPO on RRPO's pairs", "rrpo", "dpo"),
        *OF_HINTS.values(),
        Arm("MixDPO", "leanpo", "dpo", clip_pairs=MIXDPO),
        *itertools.chain(*OF_BETAS.values()),
        Arm("BMC's loss on RRPO's pairs", "rrpo", "bmc"),
    ),
    rates=(1e-4, 3e-4),
    wider_rates=(1e-6, 3e-6, 1e-5, 3e-5, 1e-3, 3e-3, 1e-2),
    dev_seeds=(100, 101, 102),
    train={
        "num_epochs": 2,
        "batch_size": 16,
        "micro_batch_size": 16,
        "log_every": 100,
        "num_monitored": 32,
        "checkpoint_minutes": None,
    },
    figure="f1",
    make_videos=make_videos.make,
    judge=rule_judge.judge,
    measure=measure,
)
BASES = {  # the task on bases of other seeds (`python -m examples.events.train_base --seed 1 --out examples/events/model-1`)
    seed: dataclasses.replace(
        EVENTS, name=f"events-{seed}", model=EVENTS.model.model_copy(update={"path": f"{EVENTS.model.path}-{seed}"})
    )
    for seed in (1, 2)
}
