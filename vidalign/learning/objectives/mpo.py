"""MPO: preference between two responses, the quality of each, and the likelihood of the better one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.learning.objectives.dpo import log_ratios
from vidalign.model.logps import PairLogps


@dataclasses.dataclass(frozen=True, kw_only=True)
class MPO(Objective):
    """Mixed Preference Optimization (arXiv 2411.10442), with InternVL's weights.

        preference_weight DPO + quality_weight BCO + sft_weight CE(chosen)
        BCO = -logsigmoid(beta r_w - shift) - logsigmoid(-(beta r_l - shift)),  r_y = sum_y - ref_sum_y

    shift is the mean of beta r_y over all responses, chosen and rejected, of the *earlier* steps, so that the loss does not depend on
    how a step is split; it is 0 at the first step, where a policy that starts as its reference has no rewards. CE is the token mean
    over the batch, as in TRL's mixture. Rewards are beta r_y.

    The state is {"sum", "count"}; see `vidalign.learning.objectives.base` for who carries it.
    """

    name: ClassVar[str] = "mpo"
    weights: ClassVar[tuple[str, ...]] = ("preference_weight", "quality_weight")
    needs_reference: ClassVar[bool] = True

    beta: float = param(0.1, gt=0)
    preference_weight: float = param(0.8, ge=0)
    quality_weight: float = param(0.2, ge=0)
    sft_weight: float = param(1.0, ge=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = (self.beta * ratio for ratio in log_ratios(policy, reference))
        shift = state["sum"] / state["count"] if state else 0.0
        quality = -F.logsigmoid(chosen - shift) - F.logsigmoid(shift - rejected)
        rewards = torch.cat([chosen, rejected]).detach().double()
        return Preference(
            losses=-self.preference_weight * F.logsigmoid(chosen - rejected) + self.quality_weight * quality,
            chosen_reward=chosen,
            rejected_reward=rejected,
            metrics={"quality_loss": quality.mean(), "reward_shift": torch.full_like(rewards[0], shift)},
            statistics={
                "sum": rewards.sum(),
                "count": torch.tensor(float(len(rewards)), dtype=torch.float64, device=rewards.device),
            },
        )

    def next_state(self, state: Mapping[str, float], statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Sum and number of the rewards of all steps so far."""
        return {name: state.get(name, 0.0) + float(statistics[name]) for name in ("sum", "count")}
