"""alpha-DPO: SimPO with a margin that adapts to each pair."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlphaDPO(Objective):
    """alpha-DPO (arXiv 2410.10148) with the length-normalised, standardised gap of the authors' code.

        D = avg_w - avg_l,  g = D - (ref_avg_w - ref_avg_l)
        margin = sg[gamma_beta_ratio + alpha (g - m) / s],  loss = -logsigmoid(beta (D - margin))

    m and s are the running mean and deviation of g over global batches. The authors' code starts both at 0 (NaN at the first
    step) and also updates them in evaluation. Here, the statistics of the *earlier* steps are used, so that the loss does not
    depend on how a step is split into micro-batches. The first step, where g is 0 for a policy that starts as the reference, has
    no adaptive part and initialises m and s. |g - m| / s is clamped to `max_deviations`, since s lags behind while a policy moves
    away from its reference. Evaluation passes the state but never advances it.

    The state is {"mean", "deviation"}; see `vidalign.learning.objectives.base` for who carries it.
    """

    name: ClassVar[str] = "alpha_dpo"
    needs_reference: ClassVar[bool] = True

    beta: float = param(2.5, gt=0)
    gamma_beta_ratio: float = param(0.3, ge=0)
    alpha: float = param(0.1, ge=0)
    momentum: float = param(0.9, ge=0, lt=1)
    max_deviations: float = param(10.0, gt=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        assert reference is not None
        chosen, rejected = policy.chosen_avg, policy.rejected_avg
        gap = chosen - rejected
        shift = (gap - (reference.chosen_avg - reference.rejected_avg)).detach()
        if state:
            deviations = (shift - state["mean"]) / (state["deviation"] + _EPSILON)
            margin = self.gamma_beta_ratio + self.alpha * deviations.clamp(-self.max_deviations, self.max_deviations)
        else:
            margin = torch.full_like(shift, self.gamma_beta_ratio)
        shift64 = shift.double()
        return Preference(
            losses=-F.logsigmoid(self.beta * (gap - margin)),
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
            metrics={"adaptive_margin": margin.mean()},
            statistics={
                "count": torch.tensor(float(len(shift)), dtype=torch.float64, device=shift.device),
                "sum": shift64.sum(),
                "sum_squares": shift64.square().sum(),
            },
        )

    def next_state(self, state: Mapping[str, float], statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """Momentum average of the mean and the (population) deviation; the first step sets them directly."""
        count = float(statistics["count"])
        mean = float(statistics["sum"]) / count
        deviation = max(float(statistics["sum_squares"]) / count - mean * mean, 0.0) ** 0.5
        if not state:
            return {"mean": mean, "deviation": deviation}
        kept = self.momentum
        return {
            "mean": kept * state["mean"] + (1 - kept) * mean,
            "deviation": kept * state["deviation"] + (1 - kept) * deviation,
        }
