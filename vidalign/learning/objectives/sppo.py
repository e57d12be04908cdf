"""SPPO: self-play preference optimisation by regression on win rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.learning.objectives.dpo import log_ratios
from vidalign.model.logps import PairLogps, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class SPPO(Objective):
    """SPPO (arXiv 2405.00675, eq. 4.7): 1/2 [(a_w - eta (P_w - 1/2))^2 + (a_l - eta (P_l - 1/2))^2], eta = 1 / beta.

    a_y = sum_y - ref_sum_y, never length-normalised; the reference is the policy that starts the round. P_y is the
    probability that y beats the policy: the pair's own win rates, which pairing estimates from the scores of all candidates
    (`vidalign.statistics.win_rates`). A pair without them, and every pair with win_rates "hard", takes the hard form 1 and 0 of the
    paper's second algorithm. TRL's "sppo_hard" is twice that loss. Rewards are beta a_y.
    """

    name: ClassVar[str] = "sppo"
    needs_reference: ClassVar[bool] = True
    takes_win_rates: ClassVar[bool] = True

    beta: float = param(0.001, gt=0)
    win_rates: Literal["pairs", "hard"] = "pairs"

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = log_ratios(policy, reference)
        won, lost = policy.chosen_win_rate, policy.rejected_win_rate
        if self.win_rates == "hard" or won is None or lost is None:
            won, lost = torch.ones_like(chosen), torch.zeros_like(rejected)
        hard = won.isnan() | lost.isnan()
        chosen_error = chosen - self._target(won.masked_fill(hard, 1.0))
        rejected_error = rejected - self._target(lost.masked_fill(hard, 0.0))
        return Preference(
            losses=0.5 * (chosen_error**2 + rejected_error**2),
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
            metrics={
                "chosen_win_rate": won.masked_fill(hard, 1.0).mean(),
                "rejected_win_rate": lost.masked_fill(hard, 0.0).mean(),
            },
        )

    def _target(self, win_rate: Tensor) -> Tensor:
        return (at_least_float32(win_rate) - 0.5) / self.beta
