"""Rewards of a group's replies, by name: what `recipe.rewards` adds up. None where a reward cannot be told.

accuracy    the project's scorer (`vidalign.data.scorers`), or the judge where no rule can tell
format      a regular expression that matches the whole reply
temporal    T-GRPO's (arXiv 2503.21776): the order of the frames helps the policy to be right
length      T-GRPO's: a right reply is as long as a thought-out one is
overlong    DAPO's (arXiv 2503.14476, eq. 13): a punishment that grows over the last tokens that a reply may have
module:attribute    a function (reply, example) -> number, True, False, or None
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vidalign.config.recipes import GroupRecipe
from vidalign.config.rewards import REWARDS
from vidalign.data.scorers import JUDGE, score
from vidalign.errors import ConfigError
from vidalign.plugins import resolve
from vidalign.types import Example, Judgement

RIGHT = 0.5  # an accuracy from which on a reply is right


@dataclasses.dataclass(frozen=True, kw_only=True)
class Said:
    """A reply as its rewards see it. `num_tokens` counts its end of turn; a reply that `is_cut` has none."""

    text: str
    num_tokens: int = 0
    is_cut: bool = False


class Reward(Protocol):
    """The reward of `reply` as an answer to `example`; None where it cannot be told."""

    def __call__(self, reply: str, example: Example, /) -> float | None: ...


def accuracy(
    reply: str, example: Example, config: GroupRecipe, judgements: Mapping[str, Judgement] | None = None
) -> float | None:
    """How right a reply is by `recipe.trust`: by rules 1, 0 or None. What those leave open a judge may tell, as 1 or 0.

    `judgements`: of this example, by response text.
    """
    value = score(reply, example, None if config.trust == JUDGE else config.trust).value
    if value is None and config.trust == JUDGE and (found := (judgements or {}).get(reply.strip())) is not None:
        return float(found.score >= config.threshold)
    return value


def has_format(reply: str, pattern: str) -> float:
    """1 where the whole reply matches, a dot any character; else 0."""
    return float(re.fullmatch(pattern, reply, re.DOTALL) is not None)


def temporal(right: Sequence[float | None], shuffled: Sequence[float | None], share: float) -> list[float | None]:
    """T-GRPO's reward of each reply: 1 for a right one of a group that is right at least `share` times as often as on shuffled frames.

    Args:
        right: accuracies of the replies. shuffled: of replies to shuffled frames; None where they cannot be told.
    """
    ordered, mixed = ([value for value in values if value is not None] for values in (right, shuffled))
    if not ordered or not mixed:
        return [None] * len(right)
    helps = sum(ordered) / len(ordered) >= share * sum(mixed) / len(mixed)
    return [None if value is None else float(helps and value >= RIGHT) for value in right]


def in_range(right: Sequence[float | None], num_tokens: Sequence[int], low: int, high: int) -> list[float | None]:
    """T-GRPO's reward for a length: 1 for a right reply of `low` to `high` tokens, else 0; None where accuracy is."""
    return [
        None if value is None else float(value >= RIGHT and low <= count <= high)
        for value, count in zip(right, num_tokens, strict=True)
    ]


def overlong(num_tokens: int, most: int, last: int) -> float:
    """DAPO's soft punishment in [-1, 0]: 0 up to `most - last` tokens, from there on (most - last - num_tokens) / last."""
    return max(-1.0, min(0.0, (most - last - num_tokens) / last))


def by_function(name: str, reply: str, example: Example) -> float | None:
    """The reward by a function of one's own. Raises `ConfigError` where it returns something else than a number or None."""
    named: dict[str, Any] = dict.fromkeys(REWARDS)
    value = resolve(name, named, what="recipe.rewards")(reply, example)
    if hasattr(value, "item"):  # a number of NumPy or torch
        value = value.item()
    if value is None:
        return None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(
            f"reward {name} returned {value!r} for the reply {reply[:80]!r} to example {example.id}; a reward is a finite number, "
            "True, False, or None where it cannot be told"
        )
    return float(value)


def parts_of(
    replies: Sequence[Said | None],
    shuffled: Sequence[Said],
    example: Example,
    config: GroupRecipe,
    judgements: Mapping[str, Judgement],
) -> dict[str, list[float | None]]:
    """{name: the value of each reply} of every reward, not weighted; None where it cannot be told, or where there is no reply.

    A reply that was cut off is neither right nor whole. The temporal reward of a prompt without a video is 0.
    """

    def is_right(said: Said) -> float | None:
        return 0.0 if said.is_cut else accuracy(said.text, example, config, judgements)

    right: list[float | None] = [None] * len(replies)
    if config.asks_who_is_right:
        right = [None if said is None else is_right(said) for said in replies]
    parts: dict[str, list[float | None]] = {}
    for name in config.rewards:
        if name == "accuracy":
            parts[name] = right
        elif name == "temporal" and not example.context.videos:
            parts[name] = [0.0] * len(replies)
        elif name == "temporal":
            parts[name] = temporal(right, [is_right(said) for said in shuffled], config.temporal_share)
        elif name == "length":
            parts[name] = in_range(right, [0 if said is None else said.num_tokens for said in replies], *config.length_range)
        else:
            parts[name] = [None if said is None else _alone(name, said, example, config) for said in replies]
    return parts


def _alone(name: str, said: Said, example: Example, config: GroupRecipe) -> float | None:
    """A reward that depends on neither the other replies nor on what is right."""
    if name == "format":
        return 0.0 if said.is_cut else has_format(said.text, config.format_pattern)
    if name == "overlong":
        assert config.overlong_tokens is not None
        return overlong(said.num_tokens, config.max_new_tokens, config.overlong_tokens)
    return by_function(name, said.text, example)


def totals(parts: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> list[float]:
    """The weighted sum of each reply's rewards; NaN where one of them cannot be told."""
    rows = zip(*(parts[name] for name in weights), strict=True)
    return [
        math.nan
        if None in row
        else math.fsum(weight * (value or 0.0) for weight, value in zip(weights.values(), row, strict=True))
        for row in rows
    ]
