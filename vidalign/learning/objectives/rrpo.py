"""RRPO: preference on marked phrases only, kept close to the reference by a token-wise KL."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class RRPO(Objective):
    """Refined Regularized Preference Optimization (arXiv 2504.12083), in the form of the authors' code.

        m_t  = logp_t - ref_logp_t
        u    = sum of m_t over the marked tokens of chosen - sum of m_t over the marked tokens of rejected
        KL   = sum over chosen response tokens of KL(ref || policy), full vocabulary
        loss = -logsigmoid(beta u) + alpha KL

    The paper's page and code disagree on the sign of KL: divergence is penalised here, as in the code. There is no length
    normalisation. A mark counts only on a response token. The sum over phrases of phrase rewards is the sum over marked
    tokens, so it matters only whether a phrase id is zero. With alpha 0 no KL is needed. Rewards are beta times the marked sums.
    The defaults are those for LLaVA-Video; LongVU: alpha 0.05, beta 0.5; VideoChat2: alpha 0.01, beta 0.9.
    """

    name: ClassVar[str] = "rrpo"
    needs_reference: ClassVar[bool] = True
    needs_phrases: ClassVar[bool] = True

    beta: float = param(0.1, gt=0)
    alpha: float = param(0.01, ge=0)

    @property
    def needs_kl(self) -> bool:
        return self.alpha > 0

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        assert reference is not None
        chosen = _marked_sum(policy.chosen, reference.chosen, policy.chosen_mask, policy.chosen_phrases)
        rejected = _marked_sum(policy.rejected, reference.rejected, policy.rejected_mask, policy.rejected_phrases)
        losses = -F.logsigmoid(self.beta * (chosen - rejected))
        metrics = {}
        if self.alpha > 0:
            assert policy.chosen_kl is not None
            kl = at_least_float32(policy.chosen_kl)
            losses = losses + self.alpha * kl
            metrics["kl"] = kl.mean()
        return Preference(
            losses=losses, chosen_reward=self.beta * chosen, rejected_reward=self.beta * rejected, metrics=metrics
        )


def _marked_sum(logps: Tensor, ref_logps: Tensor, mask: Tensor, phrases: Tensor | None) -> Tensor:
    assert phrases is not None
    ratio = at_least_float32(logps) - at_least_float32(ref_logps)
    return torch.where(mask & (phrases > 0), ratio, 0.0).sum(-1)
