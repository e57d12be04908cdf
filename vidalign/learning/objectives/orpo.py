"""ORPO: fine-tuning on the chosen response with an odds-ratio penalty."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps

# The odds of a response with an average log-probability of 0 are infinite; at this bound they are e^13.8.
_MAX_LOGP = -1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ORPO(Objective):
    """ORPO (arXiv 2403.07691, eq. 6-7): CE(chosen) - odds_weight logsigmoid(log odds_w - log odds_l).

    odds = p / (1 - p) with p = exp(average log-likelihood). CE is `sft_weight` (1 in the paper) times the token mean over
    the chosen responses of the batch; TRL's CE also counts the prompt's tokens, here only the response's count. `odds_weight` is
    the paper's lambda. Rewards are odds_weight times the average log-likelihoods, as TRL logs them.
    """

    name: ClassVar[str] = "orpo"
    weights: ClassVar[tuple[str, ...]] = ("odds_weight",)

    odds_weight: float = param(0.1, ge=0)
    sft_weight: float = param(1.0, ge=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = policy.chosen_avg, policy.rejected_avg
        log_odds_ratio = log_odds(chosen) - log_odds(rejected)
        return Preference(
            losses=-self.odds_weight * F.logsigmoid(log_odds_ratio),
            chosen_reward=self.odds_weight * chosen,
            rejected_reward=self.odds_weight * rejected,
            metrics={"log_odds_ratio": log_odds_ratio.mean()},
        )


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logp), elementwise; a logp above -1e-6 counts as -1e-6."""
    logp = logp.clamp(max=_MAX_LOGP)
    return logp - torch.log(-torch.expm1(logp))
