"""The section of recipe rrpo."""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic

from vidalign import prompts
from vidalign.config.degrading import PerturbConfig
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipe import RecipeSection, SamplingSection
from vidalign.config.used import check_used


class RrpoRecipe(SamplingSection):
    """RRPO: wrong responses to a perturbed video against the ground truth, differing in marked phrases (arXiv 2504.12083).

    A response is wrong by its trust (at most `max_trust`) or by the judge's score (below `threshold`). `rewrite` "none" takes the
    wrong response unchanged; "policy" and "judge" have that model list what the response gets wrong and swap only that into the
    ground truth, and a rewrite that differs anywhere else is dropped. Then the next likeliest wrong response is rewritten, up to
    `rewrite_tries` of an example's responses. Writing by the policy and the tries are ours.

    With `shows` "rejected_video", the policy answers about another clip of the row's own, such as another video or another part of the
    same one (`path#t=START,END`), as in TPO (arXiv 2501.13919).

    `bridge` is the other way round (BMC's bridging phase, arXiv 2408.07471): that model edits the wrong response as little as it
    takes to make it right, and that is chosen in place of the ground truth. What it writes must be right by `trust` and differ from
    the wrong response in no more words than the ground truth does. The checks are ours.
    """

    LATER: ClassVar[frozenset[str]] = SamplingSection.LATER | {"rewrite_tries", "bridge", "bridge_prompt", "shows"}
    PAIRING: ClassVar[frozenset[str]] = RecipeSection.PAIRING | {"wrong_by", "threshold", "judge"}

    name: Literal["rrpo"] = "rrpo"
    """The recipe."""
    perturb: PerturbConfig = PerturbConfig()  # type: ignore[call-arg]
    """How videos are perturbed."""
    shows: Literal["perturbed", "rejected_video"] = "perturbed"
    """What wrong responses are given to: the perturbed video, or the clip that a row names as `rejected_video`."""
    wrong_by: Literal["trust", "judge"] = "trust"
    """What decides that a response is wrong."""
    max_trust: float = pydantic.Field(0.999, ge=0, lt=1)
    """A response is wrong up to this trust."""
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    """A response is wrong below this score of the judge's."""
    rewrite: Literal["none", "policy", "judge"] = "none"
    """Who swaps what a wrong response gets wrong into the ground truth; none takes the response as it is."""
    rewrite_tries: int = pydantic.Field(3, ge=1)
    """Wrong responses of an example that are tried."""
    bridge: Literal["none", "policy", "judge"] = "none"
    """Who corrects a wrong response, for the chosen side; none takes the ground truth."""
    bridge_prompt: str = prompts.BRIDGE
    """Template that asks for the correction."""
    differences_prompt: str = prompts.DIFFERENCES
    """Template that asks for what is wrong."""
    rewrite_prompt: str = prompts.REWRITE
    """Template that asks for the swap."""
    judge: JudgeConfig | None = None
    """The model that judges or rewrites."""

    @pydantic.model_validator(mode="after")
    def _judge_is_there_and_asked(self) -> RrpoRecipe:
        if "judge" in (self.wrong_by, self.rewrite, self.bridge) and self.judge is None:
            raise ValueError(
                f"wrong_by={self.wrong_by}, rewrite={self.rewrite} and bridge={self.bridge} need recipe.judge, a text model (kind, "
                "model); or set wrong_by to trust, and rewrite or bridge to policy or none"
            )
        if "judge" not in (self.wrong_by, self.rewrite, self.bridge, self.trust) and self.judge is not None:
            raise ValueError(
                "recipe.judge is set but nothing uses it; set wrong_by, trust, rewrite or bridge to judge, or remove recipe.judge"
            )
        if self.wrong_by == self.trust == "judge":
            raise ValueError(
                "wrong_by=judge has every reply scored, trust=judge only what no rule can tell; set one of the two, the other to its "
                "default"
            )
        if "judge" in (self.wrong_by, self.trust) and "policy" in (self.rewrite, self.bridge):
            decides = "wrong_by" if self.wrong_by == "judge" else "trust"
            what = "rewrite" if self.rewrite == "policy" else "bridge"
            raise ValueError(
                f"{decides}=judge decides after the policy's rollout, too late for {what}=policy; set {what} to judge or none"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _perturbs_what_it_shows(self) -> RrpoRecipe:
        if self.shows == "rejected_video" and self.perturb != PerturbConfig():  # type: ignore[call-arg]
            raise ValueError('shows="rejected_video" shows the rows\' own clips as they are; leave perturb out, or shows')
        return self

    @pydantic.model_validator(mode="after")
    def _options_are_used(self) -> RrpoRecipe:
        check_used(
            self,
            ("judge" in (self.wrong_by, self.trust), ["threshold"], "wrong_by=judge and trust=judge"),
            (self.rewrite != "none", ["differences_prompt", "rewrite_prompt"], "rewrite by policy or judge"),
            (self.rewrite != "none" or self.bridge != "none", ["rewrite_tries"], "rewrite or bridge by policy or judge"),
            (self.bridge != "none", ["bridge_prompt"], "bridge by policy or judge"),
        )
        return self

    @pydantic.model_validator(mode="after")
    def _one_side_is_written(self) -> RrpoRecipe:
        if "none" not in (self.rewrite, self.bridge):
            raise ValueError(
                f"rewrite={self.rewrite} writes the rejected side and bridge={self.bridge} the chosen one; set one of the two to none"
            )
        if self.bridge != "none" and self.trust == "judge":
            raise ValueError(
                "bridge takes what is right by a rule or a scorer, and trust=judge scores the policy's replies alone; set trust to "
                "null, exact or f1, or bridge to none"
            )
        return self
