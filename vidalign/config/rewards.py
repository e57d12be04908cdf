"""Which rewards a group's replies get: names of `REWARDS`, or `package.module:attribute` (`vidalign.recipes.rewards`)."""

from __future__ import annotations

import re
from typing import Self

import pydantic

from vidalign.config.section import Section
from vidalign.errors import ConfigError
from vidalign.plugins import resolve

REWARDS = ("accuracy", "format", "temporal")
THINK_THEN_ANSWER = r"\s*<think>.+</think>\s*\S.*"


class RewardOptions(Section):
    """The rewards of a reply, added up with their weights.

    `rewards` {name: weight}. "accuracy": 1 where the reply is right. "format": 1 where the whole reply matches `format_pattern`.
    "temporal" (T-GRPO, arXiv 2503.21776; weight 0.3 there): 1 for right replies where they are at least `temporal_share` times as
    frequent as among `num_shuffled` replies to the video with its frames in any order. `package.module:attribute`: a function
    (reply, example) -> number, or None where it cannot tell.
    """

    rewards: dict[str, pydantic.FiniteFloat] = pydantic.Field({"accuracy": 1.0}, min_length=1)
    """Rewards and their weights: accuracy, format, temporal, or `package.module:attribute`."""
    format_pattern: str = THINK_THEN_ANSWER
    """Regular expression of a whole reply, for the reward format."""
    num_shuffled: int = pydantic.Field(0, ge=0)
    """Replies to the video with shuffled frames, for the reward temporal."""
    temporal_share: float = pydantic.Field(0.8, gt=0)
    """How many times as frequent right replies must be as with shuffled frames, for the reward temporal."""

    @pydantic.field_validator("rewards")
    @classmethod
    def _are_rewards(cls, rewards: dict[str, float]) -> dict[str, float]:
        for name in rewards:
            if name not in REWARDS and not callable(resolve(name, dict.fromkeys(REWARDS), what="recipe.rewards")):
                raise ConfigError(
                    f"recipe.rewards names {name!r}, which cannot be called; name a function (reply, example) -> number"
                )
        return rewards

    @pydantic.field_validator("format_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"format_pattern is not a regular expression ({error}); correct {pattern!r}") from error
        return pattern

    @pydantic.model_validator(mode="after")
    def _options_are_used(self) -> Self:
        fields = RewardOptions.model_fields
        if "format" not in self.rewards and self.format_pattern != fields["format_pattern"].default:
            raise ValueError("format_pattern is for the reward format; add it to rewards, or leave format_pattern out")
        if "temporal" in self.rewards and not self.num_shuffled:
            raise ValueError("the reward temporal compares with replies to shuffled frames; set num_shuffled, such as to 4")
        if "temporal" not in self.rewards and (self.num_shuffled or self.temporal_share != fields["temporal_share"].default):
            raise ValueError(
                "num_shuffled and temporal_share are for the reward temporal; add it, such as temporal: 0.3, or leave them out"
            )
        return self

    @property
    def asks_who_is_right(self) -> bool:
        """Whether a reward depends on which replies are right."""
        return not {"accuracy", "temporal"}.isdisjoint(self.rewards)
