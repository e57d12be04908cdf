"""The section of recipe verified."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import pydantic

from vidalign import prompts
from vidalign.config.judging import JudgeConfig, check_scorer
from vidalign.config.recipe import RecipeSection


class VerifiedRecipe(RecipeSection):
    """VerIPO: pairs from the replies of the group rounds just before, by a verifier (arXiv 2505.19000). Samples nothing.

    Thresholds are ours; the authors' are not published.
    """

    PAIRING: ClassVar[frozenset[str]] = RecipeSection.PAIRING | {
        *("judge", "kinds", "compare", "consistency_prompt", "max_repetition", "max_tokens")
    }

    name: Literal["verified"] = "verified"
    """The recipe."""
    judge: JudgeConfig
    """The text model that says which answer a reasoning leads to."""
    kinds: tuple[Literal["consistency", "penalty"], ...] = ("consistency", "penalty")
    """Pairs against accurate replies whose reasoning says another thing, and against wrong or repetitive ones."""
    compare: str | None = None
    """Says whether a reply's answer is the one that its reasoning leads to: null for the rules of the answer's kind, exact, f1, or
    `package.module:attribute`.
    """
    max_repetition: float = pydantic.Field(0.2, gt=0, le=1)
    """A reply is repetitive from this share of repeated runs of four words on."""
    max_tokens: int | None = pydantic.Field(None, ge=1)
    """Longer replies are never chosen."""
    consistency_prompt: str = prompts.CONSISTENCY
    """Template that asks for the answer of a reasoning."""

    @pydantic.field_validator("compare")
    @classmethod
    def _is_a_scorer(cls, name: str | None) -> str | None:
        if name == "judge":
            raise ValueError(
                "a judge says which answer the reasoning leads to already; name a scorer that compares two answers"
            )
        check_scorer(name, "recipe.compare")
        return name

    @pydantic.model_validator(mode="after")
    def _judge_reads_reasoning(self) -> Self:
        if not self.kinds:
            raise ValueError("kinds names no kind of pairs; name consistency, penalty, or both")
        if self.judge.sees_video:
            raise ValueError(
                "recipe verified asks its judge about the reasoning alone, so judge.sees must not be video or frames; leave it out"
            )
        return self
