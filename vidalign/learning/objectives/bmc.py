"""BMC: DPO that gives more weight to the tokens in which the two responses differ, the more improbable they are to the policy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps, at_least_float32, masked_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class BMC(Objective):
    """BMC, the modelling phase (arXiv 2408.07471): -logsigmoid(beta [(S_w - S_l) - (Sref_w - Sref_l)]).

    S = sum_t lambda_t logp_t with lambda_t = 1 + min(sg(1 / p_t), delta) on tokens in which the two responses differ (phrase
    id > 0, both sides) and 1 elsewhere. The authors' code weights the reference's log-probs by the reference's own 1 / p_t;
    the likely intent is one weight, the policy's, for both. `reference_weights` chooses: "policy" (default) or "reference".
    Rewards are beta times the weighted log-ratios. If no token is marked, or with delta 0, this is DPO. The bridging phase makes the
    pairs: `recipe.bridge`.
    """

    name: ClassVar[str] = "bmc"
    needs_reference: ClassVar[bool] = True
    needs_phrases: ClassVar[bool] = True

    beta: float = param(0.05, gt=0)
    delta: float = param(2.0, ge=0)
    reference_weights: Literal["policy", "reference"] = "policy"

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        assert reference is not None
        chosen = self._log_ratio(policy.chosen, reference.chosen, policy.chosen_mask, policy.chosen_phrases)
        rejected = self._log_ratio(policy.rejected, reference.rejected, policy.rejected_mask, policy.rejected_phrases)
        return Preference(
            losses=-F.logsigmoid(self.beta * (chosen - rejected)),
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
        )

    def _log_ratio(self, logps: Tensor, ref_logps: Tensor, mask: Tensor, phrases: Tensor | None) -> Tensor:
        assert phrases is not None
        logps, ref_logps = at_least_float32(logps), at_least_float32(ref_logps)
        weights = self._weights(logps, phrases)
        ref_weights = weights if self.reference_weights == "policy" else self._weights(ref_logps, phrases)
        return masked_sum(weights * logps - ref_weights * ref_logps, mask)

    def _weights(self, logps: Tensor, phrases: Tensor) -> Tensor:
        if self.delta == 0:
            return torch.ones_like(logps)
        # min(1 / p, delta), clamped before the exponential: 1 / p overflows for log-probs below -88
        boost = (-logps.detach()).clamp(max=math.log(self.delta)).exp()
        return torch.where(phrases > 0, 1 + boost, 1.0)
