"""What every objective has in common: parameters that are checked, the SFT term, normalisation and metrics.

An objective is a frozen dataclass whose fields are its parameters, and a pure function of log-probabilities. A new one on pairs
implements `preference` and is added to `vidalign.learning.objectives.OBJECTIVES`, or stays in its own package and is named as
`package.module:attribute`; no trainer has to change.

How a trainer keeps accumulation exact. The losses are means: over the pairs of the optimizer step, and for the SFT term over
its chosen tokens. Micro-batches hold different numbers of tokens, so the mean of their means would be a different number. Pass
the same denominators to every micro-batch of a step:

* plain `backward()` per micro-batch (gradients add up): `num_pairs` and `num_chosen_tokens` are the totals of the step;
* an engine that averages over A accumulation steps and W ranks (DeepSpeed): the totals divided by A * W.

State. Only `alpha_dpo` and `mpo` keep a running statistic: a plain dict of floats, stored in checkpoints. Pass `state` to every call;
add up `Loss.statistics` over the micro-batches and ranks of a step; after the step, but never in evaluation, set
`state = objective.next_state(state, statistics)`. For all other objectives both dicts are empty.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from vidalign.errors import ConfigError
from vidalign.model.logps import PairLogps, at_least_float32, masked_sum

_RULES = {
    "gt": ("greater than", lambda value, bound: value > bound),
    "ge": ("at least", lambda value, bound: value >= bound),
    "lt": ("less than", lambda value, bound: value < bound),
    "le": ("at most", lambda value, bound: value <= bound),
}


def param(default: Any, *, infinite: bool = False, **bounds: float) -> Any:
    """A dataclass field with bounds (gt, ge, lt, le) that `Objective` checks. Infinities pass only with `infinite`."""
    assert bounds.keys() <= _RULES.keys(), bounds
    return dataclasses.field(default=default, metadata={"infinite": infinite, "bounds": bounds})


@dataclasses.dataclass(frozen=True)
class Loss:
    """What an objective returns for a batch.

    `value` is the scalar to differentiate; `metrics` are detached scalars, means over the pairs of this call. `statistics` are
    detached sums for `Objective.next_state`: add them up over micro-batches and ranks.
    """

    value: Tensor
    metrics: dict[str, Tensor]
    statistics: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Preference:
    """An objective's result for each pair: the losses [B] and the implicit rewards [B] that it compares."""

    losses: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    metrics: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    statistics: dict[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyObjective:
    """Base of all objectives, on pairs (`Objective`) and on groups (`vidalign.learning.objectives.groups.GroupObjective`).

    consumes: what it is a function of, and so which view of a batch it is given (`vidalign.learning.views`).
    learns: what is trained: a policy, or a value model that later rounds take.
    needs_reference: log-probs of the same responses under the reference are required.
    needs_phrases: `chosen_phrases` and `rejected_phrases` are required.
    needs_kl: `chosen_kl` is required, that is, the reference's final hidden states (or the adapter switched off).
    takes_doubt: label smoothing may differ from pair to pair (`PairLogps.doubt`, if larger than the objective's own), which
        `train.uncertainty` needs.
    takes_win_rates: `chosen_win_rate` and `rejected_win_rate` are used where the pairs have them.
    needs_rejected: False if the rejected side may be left empty ([B, 0]).
    needs_values: a value model's advantages of each token are required, by `values_lam`, in the place of rewards.
    """

    name: ClassVar[str]
    consumes: ClassVar[Literal["pairs", "groups"]] = "pairs"
    learns: ClassVar[Literal["policy", "value"]] = "policy"
    needs_reference: ClassVar[bool] = False
    needs_phrases: ClassVar[bool] = False
    takes_doubt: ClassVar[bool] = False
    takes_win_rates: ClassVar[bool] = False
    needs_rejected: ClassVar[bool] = True
    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _typed(self.name, field.name, getattr(self, field.name), hints[field.name])
            _check_bounds(self.name, field, value)
            object.__setattr__(self, field.name, value)

    @property
    def uses_reference(self) -> bool:
        """Whether the reference's log-probs are required; it may depend on the parameters."""
        return self.needs_reference

    @property
    def needs_kl(self) -> bool:
        """Whether `chosen_kl` is required; it may depend on the parameters."""
        return False

    @property
    def needs_squares(self) -> bool:
        """Whether `chosen_squares` and `rejected_squares` are required; it may depend on the parameters."""
        return False

    def next_state(self, state: Mapping[str, float], statistics: Mapping[str, Tensor]) -> dict[str, float]:
        """The state after an optimizer step, from the sum of `Loss.statistics` over the step's global batch."""
        return dict(state)

    def __call__(self, *args: Any, **kwargs: Any) -> Loss:
        """The loss of what a view gives: of the policy, of the reference, the step's denominators by name, and `state`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(AnyObjective):
    """Base of objectives on pairs. `sft_weight` adds that multiple of the cross-entropy on the chosen response (a token mean).

    With `weigh_stale` (WPO, arXiv 2406.11827, eq. 2, in TRL's form), the preference term of each pair is weighted by how likely its
    two responses are to the policy as it is now, beside what it would sample itself: min(1, exp(a_w + a_l)), a = mean over the
    response of logp_t - log sum_v p(v)^2, without gradient. Pairs of an older policy then count less.
    """

    sft_weight: float = param(0.0, ge=0)
    weigh_stale: bool = False

    weights: ClassVar[tuple[str, ...]] = ()
    """The parameters by which all terms of `preference` are multiplied, where they can be 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weigh_stale and not self.needs_rejected:
            raise ConfigError(
                f"objective.params.weigh_stale weighs preferences, and objective.name={self.name} has none; leave it out"
            )
        weights = {name: getattr(self, name) for name in self.weights}
        if weights and not any(weights.values()) and not self.sft_weight:
            raise ConfigError(
                f"objective.params.{', '.join(weights)} and sft_weight of {self.name} are all 0, so that nothing is learned; set one "
                "above 0"
            )

    @property
    def needs_squares(self) -> bool:
        return self.weigh_stale

    def preference(self, policy: PairLogps, reference: PairLogps | None, state: Mapping[str, float]) -> Preference:
        """Loss and rewards of each pair, without the SFT term. `reference` is set if `needs_reference`."""
        raise NotImplementedError

    def __call__(
        self,
        policy: PairLogps,
        reference: PairLogps | None = None,
        *,
        num_pairs: float | None = None,
        num_chosen_tokens: float | None = None,
        state: Mapping[str, float] | None = None,
    ) -> Loss:
        """The loss of a batch of pairs and its metrics; see the module's docstring for accumulation and state.

        Args:
            num_pairs: denominator of the preference term; the default is the number of pairs of this call.
            num_chosen_tokens: denominator of the SFT term; the default is the number of chosen tokens of this call.
            state: what `next_state` returned after the last step, for objectives that keep a running statistic.
        """
        assert reference is not None or not self.needs_reference, f"{self.name} needs the reference's log-probs"
        assert policy.chosen_kl is not None or not self.needs_kl, f"{self.name} needs chosen_kl"
        assert policy.chosen_phrases is not None or not self.needs_phrases, f"{self.name} needs phrase ids"
        assert policy.rejected_phrases is not None or not self.needs_phrases, f"{self.name} needs phrase ids"
        assert policy.doubt is None or self.takes_doubt, f"{self.name} takes no doubt"
        result = self.preference(policy, reference, state or {})
        own_tokens = policy.chosen_mask.sum()
        negative_ll = -policy.chosen_sum.sum()
        losses, weights = result.losses, {}
        if self.weigh_stale:
            weight = pair_weights(policy)
            losses, weights = losses * weight, {"weight": weight.mean()}
        value = losses.sum() / (policy.num_pairs if num_pairs is None else num_pairs)
        if self.sft_weight:
            tokens = own_tokens.clamp(min=1) if num_chosen_tokens is None else num_chosen_tokens
            value = value + self.sft_weight * negative_ll / tokens
        metrics = {
            "preference_loss": losses.mean(),
            "sft_loss": negative_ll / own_tokens.clamp(min=1),
            "chosen_reward": result.chosen_reward.mean(),
            "chosen_logp": policy.chosen_avg.mean(),
        }
        if policy.rejected.shape[1]:
            metrics |= {
                "rejected_reward": result.rejected_reward.mean(),
                "margin": (result.chosen_reward - result.rejected_reward).mean(),
                "accuracy": (result.chosen_reward > result.rejected_reward).float().mean(),
                "rejected_logp": policy.rejected_avg.mean(),
            }
        metrics |= result.metrics | weights
        detached = {name: metric.detach() for name, metric in metrics.items()}
        return Loss(value, detached, {name: sums.detach() for name, sums in result.statistics.items()})


def pair_weights(policy: PairLogps) -> Tensor:
    """How likely both responses of each pair are beside what the policy would sample itself, at most 1 [B]; see `Objective`."""
    assert policy.chosen_squares is not None
    assert policy.rejected_squares is not None
    total = torch.zeros_like(policy.chosen_avg)
    for logps, squares, mask in (
        (policy.chosen, policy.chosen_squares, policy.chosen_mask),
        (policy.rejected, policy.rejected_squares, policy.rejected_mask),
    ):
        gaps = masked_sum(at_least_float32(logps.detach()) - at_least_float32(squares.detach()), mask)
        total = total + gaps / mask.sum(-1).clamp(min=1)
    return total.detach().exp().clamp(max=1.0)


def _typed(objective: str, name: str, value: Any, kind: Any) -> Any:
    """`value` as the type that its field declares: float, bool, or one of a Literal's strings. Raises `ConfigError`."""
    where = f"objective.params.{name} of {objective}"
    if get_origin(kind) is not None:  # a Literal
        options = get_args(kind)
        if value not in options:
            raise ConfigError(f"{where} must be one of {', '.join(map(repr, options))}, got {value!r}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, got {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    return float(value)


def _check_bounds(objective: str, field: dataclasses.Field[Any], value: Any) -> None:
    if not isinstance(value, float):
        return
    where = f"objective.params.{field.name} of {objective}"
    if math.isnan(value) or (math.isinf(value) and not field.metadata.get("infinite", False)):
        raise ConfigError(f"{where} must be a finite number, got {value}; its default is {field.default}")
    for rule, bound in field.metadata.get("bounds", {}).items():
        words, holds = _RULES[rule]
        if not holds(value, bound):
            raise ConfigError(f"{where} must be {words} {bound:g}, got {value:g}; its default is {field.default:g}")
