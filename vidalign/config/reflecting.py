"""The section of recipe reagent."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import pydantic

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipe import RecipeSection, SamplingSection


class ReagentRecipe(SamplingSection):
    """ReAgent-V: an answer, a critic's report on it, three reflections, and a pair of the best and the worst (arXiv 2506.01300).

    The critic is the policy itself, or `judge` for the reports that decide pairs. Tools, sub-questions and the fusion of answers are
    left out (docs/methods.md).
    """

    PAIRING: ClassVar[frozenset[str]] = RecipeSection.PAIRING | {"min_reward_gap"}

    name: Literal["reagent"] = "reagent"
    """The recipe."""
    num_candidates: int = pydantic.Field(1, ge=1)
    """First answers, each with a report and three reflections."""
    min_reward_gap: float = pydantic.Field(0.2, gt=0, le=1)
    """Least difference of the critic's rewards, in [0, 1], between chosen and rejected."""
    report_tokens: int = pydantic.Field(192, ge=1)
    """Most tokens of a report of the policy."""
    judge: JudgeConfig | None = None
    """A critic that sees the video, in place of the policy, for the reports that decide pairs; null takes the policy's own."""
    report_prompt: str = prompts.REPORT
    """Template that asks for a critic's report."""
    conservative_prompt: str = prompts.CONSERVATIVE
    """Template of the reflection that changes an answer only where the video contradicts it."""
    neutral_prompt: str = prompts.NEUTRAL
    """Template of the reflection that corrects what was seen."""
    aggressive_prompt: str = prompts.AGGRESSIVE
    """Template of the reflection that doubts both what was seen and what was concluded."""

    @pydantic.model_validator(mode="after")
    def _critic_sees(self) -> Self:
        if self.trust == "judge":
            raise ValueError("recipe reagent pairs by a critic's reports already; set trust to null, exact or f1")
        if self.judge is None:
            return self
        if not self.judge.sees_video:
            raise ValueError("the critic of recipe reagent judges by the video; set judge.sees to video or frames")
        if self.judge.prompt not in (prompts.JUDGE, prompts.JUDGE_SEEING):
            raise ValueError("recipe reagent asks its judge by report_prompt, so judge.prompt changes nothing; leave it out")
        return self
