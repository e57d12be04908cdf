"""Which rewards a group's replies get: names of `REWARDS`, or `package.module:attribute` (`vidalign.recipes.rewards`)."""

from __future__ import annotations

import re
from typing import ClassVar, Self

import pydantic

from vidalign.config.section import Section
from vidalign.errors import ConfigError
from vidalign.plugins import resolve

REWARDS = ("accuracy", "format", "temporal", "length", "overlong")
OF_THE_RIGHT = ("accuracy", "temporal", "length")  # depend on which replies are right
THINK_THEN_ANSWER = r"\s*<think>.+</think>\s*\S.*"


class RewardOptions(Section):
    """The rewards of a reply, added up with their weights.

    `rewards` {name: weight}. "accuracy": 1 where the reply is right. "format": 1 where the whole reply matches `format_pattern`.
    "temporal" (T-GRPO, arXiv 2503.21776; weight 0.3 there): 1 for right replies where they are at least `temporal_share` times as
    frequent as among `num_shuffled` replies to the video with its frames in any order. "length" (T-GRPO; weight 0.2 there): 1 for
    right replies of `length_range` tokens. "overlong" (DAPO, arXiv 2503.14476, eq. 13): 0 up to `overlong_tokens` before
    `max_new_tokens`, from there falling to -1 at `max_new_tokens`; with it, replies that were cut off are learned from, as neither
    right nor whole. `package.module:attribute`: a function (reply, example) -> number, or None where it cannot tell.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"length_range", "overlong_tokens"})

    rewards: dict[str, pydantic.FiniteFloat] = {"accuracy": 1.0}
    """Rewards and their weights: accuracy, format, temporal, length, overlong, or `package.module:attribute`; {} for dvpo."""
    format_pattern: str = THINK_THEN_ANSWER
    """Regular expression of a whole reply, for the reward format."""
    num_shuffled: int = pydantic.Field(0, ge=0)
    """Replies to the video with shuffled frames, for the reward temporal."""
    temporal_share: float = pydantic.Field(0.8, gt=0, allow_inf_nan=False)
    """How many times as frequent right replies must be as with shuffled frames, for the reward temporal."""
    length_range: tuple[int, int] = (320, 512)
    """Fewest and most tokens, with the end of turn, of a right reply that gets the reward length."""
    overlong_tokens: int | None = pydantic.Field(None, ge=1)
    """Tokens before `max_new_tokens` in which the reward overlong falls from 0 to -1; null where overlong is not among the rewards."""

    @pydantic.field_validator("rewards")
    @classmethod
    def _are_rewards(cls, rewards: dict[str, float]) -> dict[str, float]:
        for name in rewards:
            if name not in REWARDS and not callable(resolve(name, dict.fromkeys(REWARDS), what="recipe.rewards")):
                raise ConfigError(
                    f"recipe.rewards names {name!r}, which cannot be called; name a function (reply, example) -> number"
                )
        if rewards and not any(rewards.values()):
            raise ValueError(
                f"rewards={rewards} are all of weight 0, so that no reply is better than another; give one a weight, such as "
                "accuracy: 1.0, or name none, for objective dvpo"
            )
        return rewards

    @pydantic.field_validator("format_pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"format_pattern is not a regular expression ({error}); correct {pattern!r}") from error
        if not pattern:
            raise ValueError(
                "format_pattern is empty, which only an empty reply matches; write one, or leave format_pattern out"
            )
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

    @pydantic.model_validator(mode="after")
    def _lengths_are_used(self) -> Self:
        low, high = self.length_range
        if not 0 < low <= high:
            raise ValueError(f"length_range is [low, high] with 0 < low <= high (tokens of a reply), got {[low, high]}")
        if "length" not in self.rewards and self.length_range != type(self).model_fields["length_range"].default:
            raise ValueError("length_range is for the reward length; add it, such as length: 0.2, or leave length_range out")
        if "overlong" in self.rewards and self.overlong_tokens is None:
            raise ValueError(
                "the reward overlong falls over the last tokens before max_new_tokens; say over how many with overlong_tokens, such "
                "as a fifth of max_new_tokens"
            )
        if "overlong" not in self.rewards and self.overlong_tokens is not None:
            raise ValueError("overlong_tokens is for the reward overlong; add it, such as overlong: 1.0, or leave it out")
        return self

    @property
    def asks_who_is_right(self) -> bool:
        """Whether a reward depends on which replies are right."""
        return not set(OF_THE_RIGHT).isdisjoint(self.rewards)

    @property
    def asks_how_long(self) -> bool:
        """Whether a reward depends on how many tokens a reply has."""
        return not {"length", "overlong"}.isdisjoint(self.rewards)
