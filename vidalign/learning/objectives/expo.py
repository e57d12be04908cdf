"""EXPO: an explicit preference term and an explicit KL, without an implicit reward."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch.nn.functional as F

from vidalign.learning.objectives.base import Objective, Preference, param
from vidalign.model.logps import PairLogps, at_least_float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class EXPO(Objective):
    """EXPO (arXiv 2506.07492), compositional form: log(1 + exp(-(sum_w - sum_l))) + kl_weight KL(ref || policy).

    Follows the authors' toy code: the first term has no reference, beta or length normalisation. The KL is exact and token-wise
    over the chosen response, where the toy code sums over its few outcomes. The default `kl_weight` is ours. The paper's
    regression form, which that code lacks, is not offered: this is one of its two objectives. Rewards are the summed log-likelihoods.
    """

    name: ClassVar[str] = "expo"

    kl_weight: float = param(0.1, ge=0)

    @property
    def needs_kl(self) -> bool:
        return self.kl_weight > 0

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        chosen, rejected = policy.chosen_sum, policy.rejected_sum
        losses = F.softplus(rejected - chosen)
        metrics = {}
        if self.kl_weight > 0:
            assert policy.chosen_kl is not None
            kl = at_least_float32(policy.chosen_kl)
            losses = losses + self.kl_weight * kl
            metrics["kl"] = kl.mean()
        return Preference(losses=losses, chosen_reward=chosen, rejected_reward=rejected, metrics=metrics)
