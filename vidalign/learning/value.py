"""Values of the states of a response, what they should be, and what they say about each token (DVPO, arXiv 2502.16944).

    V_t         value of the state before token t of a response's T tokens, from -1 (will be rejected) to 1 (will be chosen)
    delta_t     V_{t+1} - V_t, where V_{T+1} is what is known of the end
    A_t         delta_t + lam delta_{t+1} + lam² delta_{t+2} + …                 generalised advantage estimation, gamma 1
    target_t    A_t + V_t, with the outcome (1 chosen, -1 rejected) for V_{T+1}   what a value model is trained towards
    advantage_t A_t, with V_T for V_{T+1}                                         what a policy is trained by

The authors' code takes 0 for V_{T+1} in both. For the policy that is wrong: no outcome is known there, so that the last token of a
response is credited with -V_T, and a short response whose value rises is punished. With V_T, the last token, which is the end of turn,
is credited with nothing, and the values before it decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vidalign.model.logps import at_least_float32, masked_sum

WHITEN_EPSILON = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueRows:
    """Values of the R responses of some pairs. Row r is response r // B of pair r % B: all chosen ones, then all rejected ones.

    Attributes:
        values: [R, T] of the state before each token; what the mask leaves out may be anything.
        mask: [R, T] bool, True on response tokens.
        outcomes: [R] 1 for chosen, -1 for rejected.
    """

    values: Tensor
    mask: Tensor
    outcomes: Tensor

    def __post_init__(self) -> None:
        assert self.values.shape == self.mask.shape, (self.values.shape, self.mask.shape)
        assert self.outcomes.shape == self.values.shape[:1], (self.outcomes.shape, self.values.shape)


def advantages_of(values: Tensor, mask: Tensor, *, end: Tensor, lam: float) -> Tensor:
    """A_t of each token [R, T], 0 outside the mask. `end` [R] is V_{T+1}. Without gradient. See the module's docstring."""
    values = at_least_float32(values.detach())
    later, running = end.detach().to(values.dtype), torch.zeros_like(values[:, 0])
    made = torch.zeros_like(values)
    for place in range(values.shape[1] - 1, -1, -1):
        inside = mask[:, place]
        running = torch.where(inside, later - values[:, place] + lam * running, running)
        made[:, place] = torch.where(inside, running, made[:, place])
        later = torch.where(inside, values[:, place], later)
    return made


def value_targets(rows: ValueRows, lam: float) -> Tensor:
    """What the values should be [R, T], 0 outside the mask, without gradient."""
    advantages = advantages_of(rows.values, rows.mask, end=rows.outcomes, lam=lam)
    return torch.where(rows.mask, advantages + at_least_float32(rows.values.detach()), 0.0)


def value_losses(rows: ValueRows, lam: float) -> Tensor:
    """(V_t - target_t)² / 2 of each token [R, T], 0 outside the mask. Targets have no gradient."""
    values = torch.where(rows.mask, at_least_float32(rows.values), 0.0)
    return (values - value_targets(rows, lam)).square() / 2


def last_values(values: Tensor, mask: Tensor) -> Tensor:
    """V_T of each response [R]: the value of all of it but its end of turn. Every row has a token."""
    places = torch.arange(values.shape[1], device=values.device)
    is_last = mask & (places == torch.where(mask, places, -1).amax(-1, keepdim=True))
    return masked_sum(values, is_last)


def token_advantages(values: Sequence[Tensor], lam: float) -> list[Tensor]:
    """What a value model's values [T] of each response say of its tokens [T], whitened over the tokens of all of them."""
    padded = torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)
    lengths = torch.tensor([len(each) for each in values])
    mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
    made = advantages_of(padded, mask, end=last_values(padded, mask), lam=lam)
    known = made[mask]
    whitened = (known - known.mean()) * torch.rsqrt(known.var(unbiased=False) + WHITEN_EPSILON)
    return list(whitened.split(lengths.tolist()))


def accuracy_of(chosen: Sequence[float], rejected: Sequence[float]) -> float:
    """The share of pairs whose chosen response ends with the higher value; a tie is half right."""
    points = [1.0 if won > lost else 0.5 if won == lost else 0.0 for won, lost in zip(chosen, rejected, strict=True)]
    return sum(points) / len(points)
