"""Supervised fine-tuning on the chosen responses, as an objective like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFT(Objective):
    """Cross-entropy on the chosen response: a token mean over the batch. The rejected side may be empty ([B, 0]).

    Rewards are the average log-likelihoods, so that the margin and accuracy of given pairs are reported here too.
    """

    name: ClassVar[str] = "sft"
    needs_rejected: ClassVar[bool] = False

    sft_weight: float = param(1.0, gt=0)

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen = policy.chosen_avg
        return Preference(losses=torch.zeros_like(chosen), chosen_reward=chosen, rejected_reward=policy.rejected_avg)
