"""The recipe sections of a configuration: how responses are made, judged, paired and filtered. See `vidalign.config.run`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic

from vidalign import prompts
from vidalign.config.degrading import AugmentConfig
from vidalign.config.judging import JudgeConfig
from vidalign.config.linting import LintConfig
from vidalign.config.recipe import RecipeSection, SamplingSection
from vidalign.config.reflecting import ReagentRecipe
from vidalign.config.rewards import RewardOptions
from vidalign.config.rewriting import RrpoRecipe
from vidalign.config.used import check_used
from vidalign.config.verifying import VerifiedRecipe
from vidalign.errors import ConfigError
from vidalign.plugins import resolve


class LeanpoRecipe(SamplingSection):
    """LeanPO (arXiv 2506.05260): hints and reflection for the chosen side, augmented videos for the rejected one.

    Turns, temperature and top_p are the authors'. They sample one response a side and keep every pair: `num_candidates` 1 and
    `pair_rule` "hinted_vs_augmented_unfiltered". Several candidates, "best_vs_worst" and `min_trust_gap` are ours, because a winner
    that is not better than its loser teaches the wrong thing.

    Without `hints`, the first turn uses `plain_prompt` like everything else: the paper's ablation. `negatives` "replayed" takes
    ground truths with one segment resampled by the policy (`vidalign/recipes/replay.py`) and keeps up to `replay_buffer` of them
    for later rounds; "both" lets them compete with the augmented ones.
    """

    PAIRING: ClassVar[frozenset[str]] = RecipeSection.PAIRING | {"pair_rule", "min_trust_gap", "replay_buffer", "judge"}
    LATER: ClassVar[frozenset[str]] = SamplingSection.LATER | {"judge"}

    name: Literal["leanpo"] = "leanpo"
    """The recipe."""
    hints: bool = True
    """Show the ground truth as a hint in the first turn of the chosen side."""
    num_turns: int = pydantic.Field(2, ge=1)
    """Turns of the chosen side: the first reply and its reflections."""
    rejected_top_p: float = pydantic.Field(1.0, gt=0, le=1)
    """Nucleus of sampling of the rejected side."""
    negatives: Literal["augmented", "replayed", "both"] = "augmented"
    """Where rejected responses come from: augmented videos, replayed ground truths, or both."""
    replay_max_tokens: int = pydantic.Field(256, ge=1)
    """Most tokens of a replayed segment."""
    replay_buffer: int = pydantic.Field(2000, ge=1)
    """Replayed responses that are kept for later rounds."""
    pair_rule: Literal["best_vs_worst", "hinted_vs_augmented", "hinted_vs_augmented_unfiltered"] = "best_vs_worst"
    """Which responses of an example become its pair."""
    min_trust_gap: float = pydantic.Field(0.1, ge=0, le=1)
    """Least difference of trust between chosen and rejected."""
    hint_prompt: str = prompts.HINT
    """Template of the first turn with the hint."""
    reflect_prompt: str = prompts.REFLECT
    """Template of a reflection."""
    augment: AugmentConfig = AugmentConfig()
    """How the videos of the rejected side are degraded."""
    judge: JudgeConfig | None = None
    """The model that scores what no rule can, where trust is judge."""

    @pydantic.model_validator(mode="after")
    def _judge_is_asked(self) -> LeanpoRecipe:
        if self.judge is not None and self.trust != "judge":
            raise ValueError("recipe.judge is set but nothing uses it; set trust to judge, or remove recipe.judge")
        check_used(
            self,
            (self.hints, ["hint_prompt"], "hints=true"),
            (self.num_turns > 1, ["reflect_prompt"], "num_turns of 2 and more"),
            (self.negatives != "augmented", ["replay_max_tokens", "replay_buffer"], "negatives replayed and both"),
            (self.negatives != "replayed", ["augment"], "negatives augmented and both"),
        )
        return self


class HoundRecipe(SamplingSection):
    """LLaVA-Hound: the policy's own samples, scored 1-5 by a judge that reads a caption in place of the video (arXiv 2404.01258).

    Captions come from the data rows ("data": field `caption`) or from the policy ("policy"). The chosen response scores at
    least `threshold`, the rejected one scores less, and the two are at least `min_score_gap` apart. The gap is ours.
    """

    PAIRING: ClassVar[frozenset[str]] = RecipeSection.PAIRING | {"judge", "threshold", "min_score_gap"}

    name: Literal["hound"] = "hound"
    """The recipe."""
    top_p: float = pydantic.Field(0.95, gt=0, le=1)
    """Nucleus of sampling."""
    captions: Literal["data", "policy"] = "data"
    """Where captions come from: the rows, or the policy."""
    caption_prompt: str = prompts.CAPTION
    """Template that asks the policy for a caption."""
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    """Least score of a chosen response."""
    min_score_gap: float = pydantic.Field(1.0, gt=0, le=4)
    """Least difference of scores between chosen and rejected."""
    judge: JudgeConfig
    """The model that scores responses."""

    @pydantic.model_validator(mode="after")
    def _judge_and_captions(self) -> HoundRecipe:
        if self.trust == "judge":
            raise ValueError("recipe hound pairs by its judge's scores already; set trust to null, exact or f1")
        if self.captions == "policy" and not self.judge.reads_caption:
            raise ValueError(
                "captions=policy has the policy write captions, which judge.prompt does not quote; add {caption} to it, or set "
                "captions to data"
            )
        check_used(self, (self.captions == "policy", ["caption_prompt"], "captions=policy"))
        return self


class GroupRecipe(RewardOptions, SamplingSection):
    """Groups of the policy's own replies to one prompt with rewards, for objectives on groups (grpo, dapo, dr_grpo, gspo, dvpo).

    Their log-probs are those of the untruncated policy, so `temperature` and `top_p` are 1. `trust` says who tells right from wrong
    for the rewards "accuracy", "temporal" and "length"; `judge` tells what no rule can, with `trust` "judge", as right from
    `threshold` on. `refill` is DAPO's dynamic sampling (arXiv 2503.14476): rewards decide which prompts are asked, so
    no judge gives them. `rewards` {} are none, for objective dvpo, which takes a value model in their place.
    """

    LATER: ClassVar[frozenset[str]] = SamplingSection.LATER | RewardOptions.LATER | {"num_prompts", "refill", "drop_solved"}
    PAIRING: ClassVar[frozenset[str]] = frozenset(
        {"rewards", "format_pattern", "temporal_share", "length_range", "overlong_tokens", "judge", "threshold", "lint"}
    )

    name: Literal["group"] = "group"
    """The recipe."""
    num_candidates: int = pydantic.Field(8, ge=1)
    """Replies of a group; one is enough where a value model takes the place of rewards."""
    num_prompts: int | None = pydantic.Field(None, ge=1)
    """Prompts of a round: the next ones in an order that the seed decides; null asks all of them in every round."""
    refill: bool = False
    """Go on with further prompts until the groups of `num_prompts` of them have different rewards."""
    drop_solved: float = pydantic.Field(0.0, ge=0, le=1)
    """Share of the prompts whose replies were all right, the last time that they were asked, that later rounds pass over."""
    top_p: float = pydantic.Field(1.0, gt=0, le=1)
    """Nucleus of sampling, which is 1 here."""
    judge: JudgeConfig | None = None
    """The model that scores what no rule can, where trust is judge."""
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    """Least score of the judge's of a reply that is right."""

    @pydantic.model_validator(mode="after")
    def _samples_the_policy_itself(self) -> Self:
        if (self.temperature, self.top_p) != (1.0, 1.0):
            raise ValueError(
                f"recipe group compares log-probs with those that the policy sampled with, got temperature={self.temperature:g} and "
                f"top_p={self.top_p:g}; set both to 1"
            )
        of_pairs = {"lint": self.lint != LintConfig(), "clip_pairs": self.clip_pairs is not None}  # type: ignore[call-arg]
        for option in (name for name, is_set in of_pairs.items() if is_set):
            raise ValueError(f"recipe.{option} is for pairs, and recipe group makes none; leave it out")
        if not self.asks_who_is_right and (self.trust is not None or self.judge is not None):
            raise ValueError(
                "recipe.trust and recipe.judge are for the rewards accuracy, temporal and length; add one of them to rewards"
            )
        if self.refill and (self.num_prompts is None or self.judge is not None):
            way_out = (
                "which scores only once all are sampled; set recipe.judge to null"
                if self.judge
                else "which is not set; set it"
            )
            what = "the rewards of recipe.judge" if self.judge else "num_prompts groups that differ"
            raise ValueError(f"refill=true samples until there are enough by {what}, {way_out}, or set refill to false")
        if self.rewards and self.num_candidates < 2:
            raise ValueError(
                f"num_candidates={self.num_candidates} leaves a reply nothing to be compared with; raise it to 2 or more, or set "
                "rewards to {} and take objective dvpo"
            )
        if self.refill and not self.rewards:
            raise ValueError("refill=true samples until rewards differ, and rewards={} has none; set refill to false")
        if self.drop_solved and "accuracy" not in self.rewards:
            raise ValueError("drop_solved goes by the reward accuracy; add it to rewards, or set drop_solved to 0")
        if self.overlong_tokens is not None and self.overlong_tokens >= self.max_new_tokens:
            raise ValueError(
                f"overlong_tokens={self.overlong_tokens} are the last of max_new_tokens={self.max_new_tokens}; set it lower, such "
                f"as to {max(1, self.max_new_tokens // 5)}"
            )
        if "length" in self.rewards and self.length_range[0] > self.max_new_tokens:
            raise ValueError(
                f"no reply of at most max_new_tokens={self.max_new_tokens} has the {self.length_range[0]} tokens of length_range; set "
                "length_range to what a thought-out reply takes, or raise max_new_tokens"
            )
        if self.judge is not None and self.trust != "judge":
            raise ValueError("recipe.judge is set but nothing uses it; set trust to judge, or remove recipe.judge")
        if self.judge is None and self.threshold != type(self).model_fields["threshold"].default:
            raise ValueError(
                "threshold is of a judge's scores, and there is no recipe.judge; set it, or leave threshold out"
            )
        return self


class GivenRecipe(RecipeSection):
    """No rollout: data.train already holds pairs (rows with chosen and rejected), or examples for objective sft."""

    name: Literal["given"] = "given"
    """The recipe."""


RECIPES: dict[str, type[RecipeSection]] = {
    "leanpo": LeanpoRecipe,
    "rrpo": RrpoRecipe,
    "hound": HoundRecipe,
    "given": GivenRecipe,
    "group": GroupRecipe,
    "verified": VerifiedRecipe,
    "reagent": ReagentRecipe,
}
ELSEWHERE = "elsewhere"  # tag of a recipe that is named as package.module:attribute


def section_of(name: str) -> type[RecipeSection]:
    """The section class of a recipe, by its name in `RECIPES` or as "package.module:attribute".

    Raises:
        ConfigError: there is no such recipe, or the attribute is not a recipe.
    """
    if name in RECIPES:
        return RECIPES[name]
    kind = resolve(name, RECIPES, what="recipe.name")
    section = getattr(kind, "Config", None)
    if not (isinstance(section, type) and issubclass(section, RecipeSection)):
        raise ConfigError(
            f"recipe.name={name!r} is not a recipe; name a subclass of vidalign.recipes.base.Recipe whose Config is a "
            "subclass of vidalign.config.recipe.RecipeSection"
        )
    return section


def _elsewhere(value: Any) -> RecipeSection:
    return section_of(value["name"]).model_validate(value) if isinstance(value, dict) else value


def _tag(value: Any) -> str | None:
    """None for what is neither a section nor a mapping, which pydantic then refuses."""
    if isinstance(value, RecipeSection):
        name = value.name
    elif isinstance(value, dict) and value.get("name", "leanpo") is not None:
        name = value.get("name", "leanpo")
    else:
        return None
    if not isinstance(name, str):
        return repr(name)  # which no recipe is called
    return ELSEWHERE if ":" in name else name


RecipeConfig = Annotated[
    Annotated[LeanpoRecipe, pydantic.Tag("leanpo")]
    | Annotated[RrpoRecipe, pydantic.Tag("rrpo")]
    | Annotated[HoundRecipe, pydantic.Tag("hound")]
    | Annotated[GroupRecipe, pydantic.Tag("group")]
    | Annotated[GivenRecipe, pydantic.Tag("given")]
    | Annotated[VerifiedRecipe, pydantic.Tag("verified")]
    | Annotated[ReagentRecipe, pydantic.Tag("reagent")]
    | Annotated[pydantic.SerializeAsAny[RecipeSection], pydantic.BeforeValidator(_elsewhere), pydantic.Tag(ELSEWHERE)],
    pydantic.Discriminator(_tag),
]
