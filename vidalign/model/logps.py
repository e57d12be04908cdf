"""Per-token log-probabilities of a batch of responses, computed without ever holding all logits.

Shapes: R responses of B pairs or groups, T response tokens (padded), N tokens of many responses laid end to end, D hidden width,
V vocabulary.
Log-probabilities are natural logarithms, of response tokens only (including the closing end-of-turn token), in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head: TypeAlias = Tensor | Callable[[Tensor], Tensor]
"""The output layer: a weight [V, D] (multiplied in float32), or a callable from hidden states [n, D] to logits [n, V]."""

# 512 x 152k float32 logits take 311 MB; differentiating a chunk's softmax needs about three times that.
CHUNK_SIZE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowLogps:
    """What one forward pass gives: log-probabilities under one model of the R responses of B groups, G = R / B responses each.

    Row r is response r // B of group r % B: the first response of every group, then every second one, and so on. `PairLogps` is
    the view for G = 2. A view of groups of any G reads the same rows: `logps.view(G, B, T).transpose(0, 1)` is [B, G, T].

    Attributes:
        logps: [R, T] log p(token | prompt, earlier tokens), 0 where the mask is False.
        mask: [R, T] bool, True on response tokens.
        kl: [R] sum over the response of the full-vocabulary KL(reference || policy), 0 for rows for which it was not requested.
        phrases: [R, T] int, key-phrase id of each token, 0 outside phrases.
        squares: [R, T] log of the sum over the vocabulary of p^2 where each token stands, without gradient; see `log_sum_squares`.
    """

    logps: Tensor
    mask: Tensor
    kl: Tensor | None = None
    phrases: Tensor | None = None
    squares: Tensor | None = None

    @property
    def avg(self) -> Tensor:  # [R]
        """Mean log-prob of each response's tokens."""
        return masked_sum(self.logps, self.mask) / self.mask.sum(-1).clamp(min=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLogps:
    """Log-probabilities under one model (the policy or the reference) of B chosen and B rejected responses.

    The two sides may be padded to different widths T; padding is False in the mask and 0 in the log-probs.

    Attributes:
        chosen, rejected: [B, T] log p(token | prompt, earlier tokens), 0 where the mask is False.
        chosen_mask, rejected_mask: [B, T] bool, True on response tokens.
        chosen_kl: [B] sum over the chosen response of the full-vocabulary KL(reference || policy); see `forward_kl`.
        chosen_phrases, rejected_phrases: [B, T] int, key-phrase id of each token, 0 outside phrases.
        doubt: [B] probability in [0, 0.5) that the pair's order is wrong, for objectives with label smoothing, as estimated by
            `vidalign.learning.uncertainty`.
        chosen_win_rate, rejected_win_rate: [B] estimated probability that the response beats the policy (SPPO); NaN if unknown.
        chosen_squares, rejected_squares: [B, T] see `RowLogps.squares`.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_mask: Tensor
    rejected_mask: Tensor
    chosen_kl: Tensor | None = None
    chosen_phrases: Tensor | None = None
    rejected_phrases: Tensor | None = None
    doubt: Tensor | None = None
    chosen_win_rate: Tensor | None = None
    rejected_win_rate: Tensor | None = None
    chosen_squares: Tensor | None = None
    rejected_squares: Tensor | None = None

    def __post_init__(self) -> None:
        for side in ("chosen", "rejected"):
            shape = getattr(self, side).shape
            for suffix in ("_mask", "_phrases", "_squares"):
                other = getattr(self, side + suffix)
                assert other is None or other.shape == shape, f"{side}{suffix} {tuple(other.shape)} != {side} {tuple(shape)}"
        assert self.chosen.shape[0] == self.rejected.shape[0], "both sides must hold the same number of pairs"

    @classmethod
    def from_rows(cls, rows: RowLogps, *, num_pairs: int, doubt: Tensor | None = None) -> PairLogps:
        """A view of rows with two responses per group, chosen ones first. With one response per group, the rejected side is empty.

        The tensors are views; nothing is copied.
        """
        count = len(rows.logps)
        assert count in (num_pairs, 2 * num_pairs), f"{count} rows of {num_pairs} pairs"

        def side(values: Tensor, rejected: bool) -> Tensor:  # [B, T], or [B, 0]
            if not rejected:
                return values[:num_pairs]
            return values[num_pairs:] if count > num_pairs else values.new_zeros((num_pairs, 0))

        return cls(
            chosen=side(rows.logps, False),
            rejected=side(rows.logps, True),
            chosen_mask=side(rows.mask, False),
            rejected_mask=side(rows.mask, True),
            chosen_kl=None if rows.kl is None else rows.kl[:num_pairs],
            chosen_phrases=None if rows.phrases is None else side(rows.phrases, False),
            rejected_phrases=None if rows.phrases is None else side(rows.phrases, True),
            chosen_squares=None if rows.squares is None else side(rows.squares, False),
            rejected_squares=None if rows.squares is None else side(rows.squares, True),
            doubt=doubt,
        )

    @property
    def num_pairs(self) -> int:
        """The number of pairs B."""
        return self.chosen.shape[0]

    @property
    def chosen_sum(self) -> Tensor:  # [B]
        """Log-prob of each chosen response."""
        return masked_sum(self.chosen, self.chosen_mask)

    @property
    def rejected_sum(self) -> Tensor:  # [B]
        """Log-prob of each rejected response."""
        return masked_sum(self.rejected, self.rejected_mask)

    @property
    def chosen_avg(self) -> Tensor:  # [B]
        """Mean log-prob of each chosen response's tokens."""
        return self.chosen_sum / self.chosen_mask.sum(-1).clamp(min=1)

    @property
    def rejected_avg(self) -> Tensor:  # [B]
        """Mean log-prob of each rejected response's tokens."""
        return self.rejected_sum / self.rejected_mask.sum(-1).clamp(min=1)


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` [B, T] where `mask` [B, T] is True, as [B], in float32 (float64 stays). An empty row gives 0."""
    return torch.where(mask, at_least_float32(values), 0.0).sum(-1)


def at_least_float32(values: Tensor) -> Tensor:
    """The values as float32, or unchanged if they are float64."""
    return values if values.dtype == torch.float64 else values.float()


def pad_to_mask(flat: Tensor, mask: Tensor) -> Tensor:
    """Put `flat` [N], in row order, in the N True places of `mask` [B, T]; 0 elsewhere. Differentiable."""
    assert flat.shape[0] == int(mask.sum()), f"{flat.shape[0]} values for {int(mask.sum())} places"
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)


def num_chunks(num_tokens: int, chunk_size: int = CHUNK_SIZE) -> int:
    """How often `token_logps` and `forward_kl` call the output layer for so many tokens."""
    return max(1, -(-num_tokens // chunk_size))


def token_logps(hidden: Tensor, head: Head, labels: Tensor, chunk_size: int = CHUNK_SIZE, min_calls: int = 0) -> Tensor:
    """Log-probability of each label under softmax(head(hidden)).

    Works through `chunk_size` tokens at a time and, if gradients are wanted, recomputes each chunk's logits in the backward
    pass: no tensor of [N, V] ever exists. A weight matrix is multiplied in float32 whatever its own type; the logits of a callable
    are converted to float32.

    Args:
        hidden: [N, D] final hidden states, each at the position that predicts its label; any floating type.
        head: weight [V, D], or a callable [n, D] -> [n, V].
        labels: [N] token ids.
        min_calls: the head is called at least so often, in the backward pass too, if need be on a row of zeros whose result and
            gradient count for nothing. Where each call is a collective, every rank gives what the busiest one needs (`num_chunks`).

    Returns:
        [N] float32 (float64 for float64 inputs), finite for finite logits.
    """
    logits_of = _in_float32(head)

    def chunk(rows: Tensor, ids: Tensor) -> Tensor:
        logits = logits_of(rows)
        return logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(-1)

    return _by_chunks(chunk, (hidden, labels), chunk_size, min_calls)


def log_sum_squares(hidden: Tensor, head: Head, chunk_size: int = CHUNK_SIZE, min_calls: int = 0) -> Tensor:
    """log sum_v p(v)^2 of each token's distribution [N], in nats, without gradient: the expected probability of a token sampled there.

    Arguments and chunks as in `token_logps`.
    """
    logits_of = _in_float32(head)

    def chunk(rows: Tensor) -> Tensor:
        return (2 * F.log_softmax(logits_of(rows), dim=-1)).logsumexp(-1)

    with torch.no_grad():
        return _by_chunks(chunk, (hidden,), chunk_size, min_calls)


def forward_kl(
    hidden: Tensor, ref_hidden: Tensor, head: Head, ref_head: Head, chunk_size: int = CHUNK_SIZE, min_calls: int = 0
) -> Tensor:
    """Exact KL(reference || policy) of each token's distribution: sum_v ref(v) (log ref(v) - log policy(v)).

    Chunked like `token_logps`. Nothing is differentiated with respect to the reference. Both sides use log_softmax, because
    softmax().log() is -inf for improbable tokens.

    Args:
        hidden: [N, D] the policy's final hidden states. ref_hidden: [N, D'] the reference's, for the same positions.
        head, ref_head: output layers of the policy and of the reference.
        min_calls: see `token_logps`.

    Returns:
        [N] nats, float32 (float64 for float64 inputs).
    """
    logits_of, ref_logits_of = _in_float32(head), _in_float32(ref_head)

    def chunk(rows: Tensor, ref_rows: Tensor) -> Tensor:
        with torch.no_grad():
            ref_logps = F.log_softmax(ref_logits_of(ref_rows), dim=-1)
        logps = F.log_softmax(logits_of(rows), dim=-1)
        return F.kl_div(logps, ref_logps, reduction="none", log_target=True).sum(-1)

    return _by_chunks(chunk, (hidden, ref_hidden), chunk_size, min_calls)


def _in_float32(head: Head) -> Callable[[Tensor], Tensor]:
    if isinstance(head, Tensor):
        weight = at_least_float32(head)  # once, so that the chunks' gradients add up in float32
        return lambda rows: rows.to(weight.dtype) @ weight.T
    return lambda rows: at_least_float32(head(rows))


def _by_chunks(chunk: Callable[..., Tensor], columns: tuple[Tensor, ...], chunk_size: int, min_calls: int) -> Tensor:
    assert chunk_size >= 1, f"chunk_size must be at least 1, got {chunk_size}"
    assert len({column.shape[0] for column in columns}) == 1, [tuple(column.shape) for column in columns]
    count = columns[0].shape[0]
    full, rest = divmod(count, chunk_size)
    sizes = [chunk_size] * full + [rest] * (rest > 0)
    if (missing := min_calls - len(sizes)) > 0:
        # Rows, because autograd does not go back through an empty chunk; joined to the others, because a call whose input
        # needs no gradient is not made again in the backward pass.
        sizes += [1] * missing
        columns = tuple(torch.cat([column, column.new_zeros((missing, *column.shape[1:]))]) for column in columns)
    pieces = []
    for rows in zip(*(column.split(sizes or [0]) for column in columns), strict=True):
        if torch.is_grad_enabled():
            pieces.append(checkpoint(chunk, *rows, use_reentrant=False, preserve_rng_state=False))
        else:
            pieces.append(chunk(*rows))
    joined = torch.cat(pieces)
    return joined[:count] if missing > 0 else joined
