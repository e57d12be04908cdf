"""Objective value: what a response is worth while it is written, learned from pairs. It trains a value model and no policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from vidalign.learning.objectives.base import AnyObjective, Loss, param
from vidalign.learning.value import ValueRows, last_values, value_losses
from vidalign.model.logps import masked_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value(AnyObjective):
    """DVPO's value model (arXiv 2502.16944): the mean over response tokens of (V_t - target_t)² / 2.

    See `vidalign.learning.value` for the targets. One model is trained; objective `dvpo` takes it, frozen, in later rounds.

    lam: of the targets; 1 is the outcome itself for every token.
    heldout: the share of the videos whose pairs are not trained on; they say how often the model ranks a pair as its data does.
    min_accuracy: a run ends where that share of pairs is lower.
    """

    name: ClassVar[str] = "value"
    learns: ClassVar[Literal["policy", "value"]] = "value"

    lam: float = param(0.95, ge=0, le=1)
    heldout: float = param(0.1, gt=0, lt=1)
    min_accuracy: float = param(0.6, ge=0, le=1)

    def __call__(
        self,
        policy: ValueRows,
        reference: Any = None,
        *,
        num_tokens: float | None = None,
        state: Mapping[str, float] | None = None,
    ) -> Loss:
        """The loss of some pairs and its metrics.

        Args:
            policy: what the value model says. reference, state: are not used.
            num_tokens: response tokens of the step; the default is those of this call.
        """
        sums = masked_sum(value_losses(policy, self.lam), policy.mask)
        tokens = policy.mask.sum().clamp(min=1) if num_tokens is None else num_tokens
        chosen, rejected = last_values(policy.values, policy.mask).detach().chunk(2)
        metrics = {
            "chosen_value": chosen.mean(),
            "rejected_value": rejected.mean(),
            "accuracy": (chosen > rejected).float().mean(),
        }
        return Loss(sums.sum() / tokens, metrics)
