"""An objective of one's own: a hinge on the difference of the two average log-likelihoods, which stops pushing once it is wide enough.

    objective: {name: "hinge:Hinge", params: {width: 1.0}}

An objective is a frozen dataclass. Its fields are its parameters, which `param` gives a default and bounds; `preference` returns the
loss of every pair. The likelihood of the chosen side can be held up by the parameter `sft_weight`, which all objectives have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hinge(Objective):
    """max(0, width - (average chosen - average rejected)), in nats per token."""

    name: ClassVar[str] = "hinge"
    needs_reference: ClassVar[bool] = False  # True: `reference` has the same log-probs under the policy before training

    width: float = param(1.0, gt=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        gap = policy.chosen_avg - policy.rejected_avg  # [B]
        return Preference(
            losses=torch.relu(self.width - gap),
            chosen_reward=policy.chosen_avg,
            rejected_reward=policy.rejected_avg,
            metrics={"wide_enough": (gap > self.width).float().mean()},  # shown beside the loss
        )
