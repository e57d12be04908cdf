"""Objectives on groups: GRPO and its relatives as switches of one loss, on a policy's own responses and their advantages.

    rho  = exp(logp - behaviour)                          `ratio` token;    sequence: exp of the mean over the response's tokens
    loss = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta (exp(r - logp) - (r - logp) - 1)         of each token

behaviour: log-probs under the policy that sampled the response; r: under the reference, the policy that the round starts from.
`normalise` says what the sum over tokens is divided by. The same denominators go to every micro-batch of an optimizer step, as
`vidalign.learning.objectives.base` says: `num_responses` and `num_tokens` of the whole step take the place of `num_pairs` and
`num_chosen_tokens`.

    rho  = exp(logp - r)         with `decoupled`, and min(…) is weighted by sg[min(exp(r - behaviour), max_behaviour_weight)]

This is the decoupled objective of AReaL (arXiv 2505.24298, after 2110.00641) for responses of an older policy (`max_staleness`): the
clip holds the policy near the one that the round starts from, and the weight corrects for who sampled.

| name      | normalise                                        | ratio    | eps_low, eps_high | beta | scale | drop_uniform |
| `grpo`    | response: mean over the responses' token means   | token    | 0.2, 0.2          | 0.04 | yes   | no           |
| `dapo`    | tokens: mean over all tokens of the step         | token    | 0.2, 0.28         | 0    | yes   | yes          |
| `dr_grpo` | constant: sum over tokens / (responses x a constant) | token | 0.2, 0.2         | 0    | no    | no           |
| `gspo`    | response                                         | sequence | 3e-4, 4e-4        | 0    | yes   | no           |
| `dvpo`    | tokens                                           | token    | 0.2, 0.2          | 0    | from a value model, each token |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vidalign.errors import ConfigError
from vidalign.learning.objectives.base import AnyObjective, Loss, param
from vidalign.model.logps import at_least_float32, masked_sum


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupLogps:
    """Log-probabilities under the policy of the R responses of some groups.

    Attributes:
        logps: [R, T] log p(token | prompt, earlier tokens); what the mask leaves out may be anything.
        mask: [R, T] bool, True on the tokens that are learned from; a row without any is a response that is left out.
        behaviour: [R, T] the same under the policy that sampled the responses.
        advantages: [R], or [R, T] for each token.
    """

    logps: Tensor
    mask: Tensor
    behaviour: Tensor
    advantages: Tensor

    def __post_init__(self) -> None:
        shape = self.logps.shape
        assert self.mask.shape == self.behaviour.shape == shape, (shape, self.mask.shape, self.behaviour.shape)
        assert self.advantages.shape in (shape, shape[:1]), (shape, self.advantages.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupObjective(AnyObjective):
    """Base of objectives on groups, and all of them at once: see the module's docstring for the loss and its switches.

    scale: advantages are divided by the deviation of the group's rewards (`vidalign.learning.advantages`).
    drop_uniform: groups whose rewards are all alike are not trained on. They have no advantages, but count in the denominators and,
        with beta, have a KL.
    max_tokens: the constant of `normalise` "constant"; a run refuses another number than recipe.max_new_tokens.
    decoupled: the ratio is to the reference, and weighted by the reference's own to the policy that sampled, of at most
        `max_behaviour_weight`.
    """

    consumes: ClassVar[Literal["pairs", "groups"]] = "groups"

    normalise: Literal["response", "tokens", "constant"] = "response"
    ratio: Literal["token", "sequence"] = "token"
    eps_low: float = param(0.2, gt=0, lt=1)
    eps_high: float = param(0.2, gt=0)
    beta: float = param(0.0, ge=0)
    scale: bool = True
    drop_uniform: bool = False
    max_tokens: float = param(256.0, ge=1)
    decoupled: bool = False
    max_behaviour_weight: float = param(2.0, gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = {field.name: field for field in dataclasses.fields(self)}
        for is_used, name, why in (
            (self.normalise == "constant", "max_tokens", 'normalise "constant"'),
            (self.decoupled, "max_behaviour_weight", "decoupled=true"),
        ):
            if not is_used and getattr(self, name) != fields[name].default:
                raise ConfigError(
                    f"objective.params.{name} is set but nothing uses it: it is for {why}; set that, or leave {name} out"
                )

    @property
    def uses_reference(self) -> bool:
        return self.beta > 0 or self.decoupled

    @property
    def values_lam(self) -> float:
        """How far later values count in a token's advantage, if `needs_values`."""
        raise NotImplementedError

    def __call__(
        self,
        policy: GroupLogps,
        reference: Tensor | None = None,
        *,
        num_responses: float | None = None,
        num_tokens: float | None = None,
        state: Mapping[str, float] | None = None,
    ) -> Loss:
        """The loss of some groups and its metrics.

        Args:
            reference: [R, T] log-probs under the reference, if `uses_reference`.
            num_responses, num_tokens: of the step, without those that are left out; the defaults are those of this call.
            state: is not used.
        """
        assert reference is not None or not self.uses_reference, (
            f"{self.name} with beta={self.beta:g} and decoupled={self.decoupled} needs the reference's log-probs"
        )
        mask = policy.mask
        lengths = mask.sum(-1).clamp(min=1)
        logps = torch.where(mask, at_least_float32(policy.logps), 0.0)
        behaviour = torch.where(mask, policy.behaviour.to(logps.dtype), 0.0)
        log_ratio = logps - behaviour
        near, corrections = behaviour, None
        if self.decoupled:
            assert reference is not None
            near = torch.where(mask, reference.to(logps.dtype), 0.0)
            corrections = self._ratios(near - behaviour, lengths).clamp(max=self.max_behaviour_weight).detach()
        weights = self._ratios(logps - near, lengths)
        advantages = policy.advantages.to(logps.dtype)
        advantages = advantages if advantages.ndim == 2 else advantages[:, None]
        free = weights * advantages
        held = weights.clamp(1 - self.eps_low, 1 + self.eps_high) * advantages
        gains = torch.minimum(free, held).expand_as(logps)
        if corrections is not None:
            gains = gains * corrections
        clipped = (free > held).expand_as(logps)
        losses, kl = -gains, torch.zeros_like(logps)
        if reference is not None and self.beta:
            shift = torch.where(mask, reference.to(logps.dtype), 0.0) - logps
            kl = shift.exp() - shift - 1
            losses = losses + self.beta * kl
        responses = mask.any(-1).sum().clamp(min=1) if num_responses is None else num_responses
        tokens = mask.sum().clamp(min=1) if num_tokens is None else num_tokens
        sums = masked_sum(losses, mask)  # [R]
        if self.normalise == "response":
            value = (sums / lengths).sum() / responses
        else:
            value = sums.sum() / (tokens if self.normalise == "tokens" else responses * self.max_tokens)
        own = mask.sum().clamp(min=1)
        metrics = {
            "policy_loss": masked_sum(-gains, mask).sum() / own,
            "kl": masked_sum(kl, mask).sum() / own,
            "clipped": (clipped & mask).sum() / own,
            "log_ratio": masked_sum(log_ratio.abs(), mask).sum() / own,
            "logp": masked_sum(logps, mask).sum() / own,
        }
        if corrections is not None:
            metrics["behaviour_weight"] = masked_sum(corrections.expand_as(logps), mask).sum() / own
        return Loss(value, {name: metric.detach() for name, metric in metrics.items()})

    def _ratios(self, log_ratios: Tensor, lengths: Tensor) -> Tensor:
        """exp of log-ratios [R, T], or of their means over responses [R, 1]; `lengths` [R]."""
        return (log_ratios if self.ratio == "token" else (log_ratios.sum(-1) / lengths)[:, None]).exp()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(GroupObjective):
    """GRPO (arXiv 2402.03300, eq. 3 and 4; beta there 0.04), against the policy that sampled. Reference: the round's first policy."""

    name: ClassVar[str] = "grpo"

    beta: float = param(0.04, ge=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DAPO(GroupObjective):
    """DAPO (arXiv 2503.14476): a higher upper clip, a mean over tokens, no KL, no groups that are all alike.

    The paper samples until a step is full of groups that differ: `recipe.refill`. Its soft punishment of long replies is the reward
    "overlong".
    """

    name: ClassVar[str] = "dapo"

    normalise: Literal["response", "tokens", "constant"] = "tokens"
    eps_high: float = param(0.28, gt=0)
    drop_uniform: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrGRPO(GroupObjective):
    """Dr.GRPO (arXiv 2503.20783): neither the length of a response nor the deviation of its group scales its gradient."""

    name: ClassVar[str] = "dr_grpo"

    normalise: Literal["response", "tokens", "constant"] = "constant"
    scale: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class GSPO(GroupObjective):
    """GSPO (arXiv 2507.18071, eq. 5 to 7, clip ranges of section 5.1): one ratio a response, the geometric mean of its tokens'."""

    name: ClassVar[str] = "gspo"

    ratio: Literal["token", "sequence"] = "sequence"
    eps_low: float = param(3e-4, gt=0, lt=1)
    eps_high: float = param(4e-4, gt=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DVPO(GroupObjective):
    """DVPO (arXiv 2502.16944): a frozen value model, trained on pairs before, says of each token whether it made the response better.

        A_t = whitened advantage of the value model's values (`vidalign.learning.value`, over all responses of the round)
              - kl sg(logp_t - r_t)

    No rewards, and one response a prompt is enough. Reference: the round's first policy. The authors' kl is adapted to a target of 6,
    and they stop early; here it is fixed.

    lam: of the advantages.
    """

    name: ClassVar[str] = "dvpo"
    needs_values: ClassVar[bool] = True

    normalise: Literal["response", "tokens", "constant"] = "tokens"
    kl: float = param(0.2, ge=0)
    lam: float = param(0.95, ge=0, le=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for option in ("scale", "drop_uniform"):
            if getattr(self, option) != getattr(GroupObjective, option):
                raise ConfigError(
                    f"objective.params.{option} is about the rewards of a group, and objective.name={self.name} takes none; leave "
                    "it out"
                )

    @property
    def uses_reference(self) -> bool:
        return self.kl > 0 or super().uses_reference

    @property
    def values_lam(self) -> float:
        return self.lam

    def __call__(
        self,
        policy: GroupLogps,
        reference: Tensor | None = None,
        *,
        num_responses: float | None = None,
        num_tokens: float | None = None,
        state: Mapping[str, float] | None = None,
    ) -> Loss:
        """See `GroupObjective`. `policy.advantages` [R, T] are the value model's."""
        assert policy.advantages.shape == policy.logps.shape, "dvpo takes an advantage for each token"
        if self.kl > 0:
            assert reference is not None, f"{self.name} with kl={self.kl:g} needs the reference's log-probs"
            logps = at_least_float32(policy.logps.detach())
            shift = torch.where(policy.mask, logps - reference.to(logps.dtype), 0.0)
            policy = dataclasses.replace(policy, advantages=policy.advantages.to(logps.dtype) - self.kl * shift)
        return super().__call__(policy, reference, num_responses=num_responses, num_tokens=num_tokens, state=state)
