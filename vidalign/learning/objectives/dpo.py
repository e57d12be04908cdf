"""DPO and its close relatives: objectives on log-ratios of the policy to a reference.

Throughout: r_y = sum_y - ref_sum_y (a log-ratio, summed over the response) and Delta = r_w - r_l. Rewards are beta r_y.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps


def log_ratios(policy: PairLogps, reference: PairLogps | None) -> tuple[Tensor, Tensor]:
    """Summed log-ratios (chosen, rejected) of the policy to the reference, each [B]."""
    assert reference is not None
    return policy.chosen_sum - reference.chosen_sum, policy.rejected_sum - reference.rejected_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(Objective):
    """DPO (arXiv 2305.18290, eq. 7): -logsigmoid(beta Delta)."""

    name: ClassVar[str] = "dpo"
    needs_reference: ClassVar[bool] = True

    beta: float = param(0.1, gt=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = log_ratios(policy, reference)
        losses = self.losses(self.beta * (chosen - rejected), policy.doubt)
        return Preference(losses=losses, chosen_reward=self.beta * chosen, rejected_reward=self.beta * rejected)

    def losses(self, logits: Tensor, doubt: Tensor | None = None) -> Tensor:
        """Loss of each pair from beta Delta and, if the objective takes it, the pair's doubt; [B] to [B]."""
        return -F.logsigmoid(logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CDPO(DPO):
    """Conservative DPO (Mitchell, "A note on DPO with noisy preferences", 2023): labels are wrong with probability e.

    -(1 - e) logsigmoid(beta Delta) - e logsigmoid(-beta Delta), with its minimum at sigmoid(beta Delta) = 1 - e.
    """

    name: ClassVar[str] = "cdpo"
    takes_doubt: ClassVar[bool] = True

    label_smoothing: float = param(0.1, ge=0, lt=0.5)

    def losses(self, logits: Tensor, doubt: Tensor | None = None) -> Tensor:
        smoothing = torch.full_like(logits, self.label_smoothing)
        if doubt is not None:
            smoothing = smoothing.maximum(doubt.to(logits.dtype))
        return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RDPO(DPO):
    """Provably Robust DPO (arXiv 2403.00409): an unbiased estimate of the DPO loss under labels flipped at rate e.

    [-(1 - e) logsigmoid(beta Delta) + e logsigmoid(-beta Delta)] / (1 - 2e). The second term has the opposite sign of cDPO's:
    the loss has no lower bound, and the gradient's weight never falls below e / (1 - 2e).
    """

    name: ClassVar[str] = "rdpo"

    label_smoothing: float = param(0.1, ge=0, lt=0.5)

    def losses(self, logits: Tensor, doubt: Tensor | None = None) -> Tensor:
        e = self.label_smoothing
        return (-(1 - e) * F.logsigmoid(logits) + e * F.logsigmoid(-logits)) / (1 - 2 * e)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IPO(Objective):
    """IPO (arXiv 2310.12036, eq. 17): (Delta_avg - 1 / (2 beta))^2.

    The log-ratios are averaged over tokens, as in TRL and, according to the authors there, in the paper's experiments; the
    printed equation has sums. Rewards are beta times the average log-ratios.
    """

    name: ClassVar[str] = "ipo"
    needs_reference: ClassVar[bool] = True

    beta: float = param(0.1, gt=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        assert reference is not None
        chosen = policy.chosen_avg - reference.chosen_avg
        rejected = policy.rejected_avg - reference.rejected_avg
        return Preference(
            losses=(chosen - rejected - 1 / (2 * self.beta)) ** 2,
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RPO(Objective):
    """DPO with the SFT loss as an adversarial regulariser (arXiv 2405.16436), in one of the two forms in use.

    "average": dpo + eta (-avg_w), per pair; eta 0.2 and beta 0.5 (the defaults).
    "sum":     dpo + beta eta (-sum_w); use eta 0.005 and beta 0.01 to 0.05.
    A third form, cross-entropy as a token mean over the batch, is `dpo` with `sft_weight`.
    """

    name: ClassVar[str] = "rpo"
    needs_reference: ClassVar[bool] = True

    beta: float = param(0.5, gt=0)
    eta: float = param(0.2, ge=0)
    form: Literal["average", "sum"] = "average"

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = log_ratios(policy, reference)
        average = self.form == "average"
        regulariser = -self.eta * (policy.chosen_avg if average else self.beta * policy.chosen_sum)
        return Preference(
            losses=-F.logsigmoid(self.beta * (chosen - rejected)) + regulariser,
            chosen_reward=self.beta * chosen,
            rejected_reward=self.beta * rejected,
            metrics={"regulariser": regulariser.mean()},
        )
