"""A packed row divided among several ranks (`train.sequence_parallel`), for videos too long for one: Ulysses, arXiv 2309.14509.

    tokens    each rank computes its share of the row: every layer except attention works token by token
    attention before it the ranks exchange shares of tokens for shares of heads, after it back: each sees the whole row for its heads
    responses each rank computes the log-probs of the response tokens in its share; then all ranks have all of them

The embeddings of the row, with those of its videos, are computed by each of these ranks. Ulysses as DeepSpeed has it knows one causal
sequence; here the attention that is given the whole row is that of packed rows (`vidalign.model.shared_prefix`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vidalign.errors import ConfigError
from vidalign.model import families, shared_prefix

ATTENTION = "vidalign_shared_prefix_shards"


@dataclasses.dataclass(frozen=True)
class Shards:
    """The ranks that divide a row among them, and which of `count` this one is."""

    group: Any
    count: int
    index: int

    def length(self, num_tokens: int) -> int:
        """Tokens of each rank's share of a row; the last one is filled up."""
        return -(-num_tokens // self.count)

    def own(self, values: Tensor, axis: int) -> Tensor:
        """This rank's share of a row's values along an axis, filled up with zeros."""
        length = self.length(values.shape[axis])
        missing = length * self.count - values.shape[axis]
        if missing:
            values = torch.cat([values, torch.zeros_like(values.narrow(axis, 0, missing))], dim=axis)
        return values.narrow(axis, self.index * length, length)

    def joined(self, values: Tensor, is_own: Tensor, states: Tensor) -> Tensor:
        """All [N, …] of what each rank has a part of: the True places of its `is_own` [N]. Collective, in the forward pass alone.

        Args:
            states: what the values were computed from. A rank without any goes back through it as well, because others wait for it
                in the exchanges of its layers.
        """
        return _Joined.apply(values, states, is_own, self)


def shards_of(count: int) -> Shards | None:
    """The shards that this process is one of, neighbours sharing a row; None for a count of 1. Collective."""
    if count == 1:
        return None
    rank, found = dist.get_rank(), None
    for first in range(0, dist.get_world_size(), count):
        members = list(range(first, first + count))
        group = dist.new_group(members)
        if rank in members:
            found = Shards(group, count, rank - first)
    return found


def check(model: Any, count: int, *, packed: bool) -> None:
    """Raises `ConfigError` where rows of this model cannot be divided among so many ranks."""
    if count == 1:
        return
    set_to_1 = "set train.sequence_parallel to 1"
    if not families.family_of(model).shards:
        fitting = [name for name, family in families.FAMILIES.items() if family.shards]
        raise ConfigError(
            f"train.sequence_parallel={count} works only for {', '.join(fitting)}, but this model is {model.config.model_type}; "
            f"{set_to_1}"
        )
    if not packed:
        raise ConfigError(
            f"train.sequence_parallel={count} divides packed rows, but this training takes separate sequences; set "
            f"train.shared_prefix to true where the model packs, or {set_to_1}"
        )
    text = model.config.get_text_config()
    heads, kv_heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % count or kv_heads % count:
        fitting = [str(number) for number in range(2, kv_heads + 1) if not heads % number and not kv_heads % number]
        raise ConfigError(
            f"train.sequence_parallel={count} must divide the model's {heads} attention heads and {kv_heads} heads of keys and "
            f"values; set it to {' or '.join(['1', *fitting])}"
        )


def enable(model: Any, shards: Shards) -> None:
    """Let a language model compute this rank's share of each row; from then on it takes only packed rows, on all ranks at once."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, functools.partial(attend, shards))
    model.config.get_text_config()._attn_implementation = ATTENTION

    def share(module: Any, given: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert not given, "the language model is called with keywords"
        embeds, positions = options["inputs_embeds"], options["position_ids"]
        return given, {**options, "inputs_embeds": shards.own(embeds, 1), "position_ids": shards.own(positions, -1)}

    families.decoder(model).register_forward_pre_hook(share, with_kwargs=True)


def attend(
    shards: Shards,
    module: torch.nn.Module,
    query: Tensor,  # [1, H, T of a share, D]
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    groups: Any,
    **options: Any,
) -> tuple[Tensor, None]:  # [1, T of a share, H, D]
    """Attention over the whole row for this rank's share of the heads. Collective, in the backward pass too."""
    num_tokens = sum(group.prompt + sum(group.responses) for group in groups)
    q, k, v = (_heads_for_tokens(each, shards)[:, :, :num_tokens] for each in (query, key, value))
    out, _ = shared_prefix.attend(module, q, k, v, attention_mask, groups=groups, **options)  # [1, T, H of a share, D]
    length = query.shape[2]
    filled = F.pad(out, (0, 0, 0, 0, 0, length * shards.count - num_tokens))
    parts = _Exchanged.apply(filled[0].unflatten(0, (shards.count, length)), shards)  # [shares of heads, T, H, D]
    return parts.transpose(0, 1).flatten(1, 2)[None], None


def _heads_for_tokens(values: Tensor, shards: Shards) -> Tensor:
    """[1, H of a share, T, D] from [1, H, T of a share, D]."""
    parts = _Exchanged.apply(values[0].unflatten(0, (shards.count, -1)), shards)  # [shares of tokens, H, T, D]
    return parts.transpose(0, 1).flatten(1, 2)[None]


class _Exchanged(torch.autograd.Function):
    """Part i of every rank's [count, …] goes to rank i, which gets them in the order of the ranks."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return _exchange(parts, shards)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _exchange(grads[0], ctx.shards), None


def _exchange(parts: Tensor, shards: Shards) -> Tensor:
    parts = parts.contiguous()
    got = torch.empty_like(parts)
    dist.all_to_all_single(got, parts, group=shards.group)
    return got


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, states: Tensor, is_own: Tensor, shards: Shards) -> Tensor:
        ctx.save_for_backward(is_own)
        ctx.shards, ctx.shape, ctx.dtype = shards, states.shape, states.dtype
        whole = values.new_zeros((len(is_own), *values.shape[1:]))
        whole[is_own] = values
        dist.all_reduce(whole, group=shards.group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients are means over all ranks in the end, and each rank has those of its share: so they count `count` times."""
        (is_own,) = ctx.saved_tensors
        zeros = torch.zeros(ctx.shape, dtype=ctx.dtype, device=grads[0].device)
        return grads[0][is_own] * ctx.shards.count, zeros, None, None
