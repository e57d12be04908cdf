"""Reference-free objectives on average log-likelihood: LeanPO and SimPO."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeanPO(Objective):
    """LeanPO (arXiv 2506.05260) with dynamic label smoothing, in the form of the authors' training code.

        D    = avg_w - avg_l
        a    = label_smoothing if D < smoothing_threshold else 0        (a step; no gradient through it)
        loss = -(1 - a) logsigmoid(beta D - margin) - a logsigmoid(-beta D - margin)  +  sft_weight CE(chosen)

    The flipped term keeps `-margin`, unlike SimPO's smoothing, which negates the whole argument. Smoothing acts only on pairs
    that the policy still ranks the wrong way (or too narrowly): those whose label is most in doubt. Rewards are beta times the
    average log-likelihoods.
    """

    name: ClassVar[str] = "leanpo"
    takes_doubt: ClassVar[bool] = True

    beta: float = param(2.0, gt=0)
    margin: float = param(0.5, ge=0)
    label_smoothing: float = param(0.1, ge=0, le=1)
    smoothing_threshold: float = param(0.0, infinite=True)
    sft_weight: float = param(0.5, ge=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = policy.chosen_avg, policy.rejected_avg
        gap = chosen - rejected
        smoothed = gap < self.smoothing_threshold
        smoothing = self.label_smoothing * smoothed.to(gap.dtype)
        if policy.doubt is not None:
            smoothing = smoothing.maximum(policy.doubt.to(gap.dtype))
        kept = F.logsigmoid(self.beta * gap - self.margin)
        flipped = F.logsigmoid(-self.beta * gap - self.margin)
        return Preference(
            losses=-(1 - smoothing) * kept - smoothing * flipped,
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
            metrics={"smoothed_share": smoothed.float().mean()},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPO(Objective):
    """SimPO (arXiv 2405.14734, eq. 6): -logsigmoid(beta D - margin), D the gap of average log-likelihoods.

    `margin` is the paper's gamma, not gamma / beta. With `label_smoothing` e, the authors' code adds the mirrored term:
    -(1 - e) logsigmoid(beta D - margin) - e logsigmoid(-(beta D - margin)).
    """

    name: ClassVar[str] = "simpo"
    takes_doubt: ClassVar[bool] = True

    beta: float = param(2.0, gt=0)
    margin: float = param(0.5, ge=0)
    label_smoothing: float = param(0.0, ge=0, le=1)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = policy.chosen_avg, policy.rejected_avg
        logits = self.beta * (chosen - rejected) - self.margin
        smoothing = torch.full_like(logits, self.label_smoothing)
        if policy.doubt is not None:
            smoothing = smoothing.maximum(policy.doubt.to(logits.dtype))
        return Preference(
            losses=-(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits),
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
        )
