"""SPPO: self-play preference optimisation by regression on win rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.learning.objectives.dpo import log_ratios
from vidalign.model.logps import PairLogps, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class SPPO(Objective):
    """SPPO (arXiv 2405.00675, eq. 4.7): 1/2 [(a_w - eta (P_w - 1/2))^2 + (a_l - eta (P_l - 1/2))^2], eta = 1 / beta.

    a_y = sum_y - ref_sum_y, never length-normalised; the reference is the policy that starts the round. P_y is the
    probability that y beats the policy: the pairs' `chosen_win_rate` and `rejected_win_rate` if given (see `win_rates`), else the
    hard form 1 and 0. TRL's "sppo_hard" is twice this loss. Rewards are beta a_y.
    """

    name: ClassVar[str] = "sppo"
    needs_reference: ClassVar[bool] = True

    beta: float = param(0.001, gt=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = log_ratios(policy, reference)
        chosen_error = chosen - self._target(policy.chosen_win_rate, 1.0)
        rejected_error = rejected - self._target(policy.rejected_win_rate, 0.0)
        return Preference(
            losses=0.5 * (chosen_error**2 + rejected_error**2),
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
        )

    def _target(self, win_rate: Tensor | None, hard: float) -> Tensor | float:
        return ((hard if win_rate is None else at_least_float32(win_rate)) - 0.5) / self.beta


def win_rates(scores: Tensor) -> Tensor:
    """Win rate of each of K responses against all K (including itself), from scores [..., K]: mean_j sigmoid(s_i - s_j)."""
    scores = at_least_float32(scores)
    return torch.sigmoid(scores[..., :, None] - scores[..., None, :]).mean(-1)
