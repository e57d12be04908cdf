"""One forward pass for many pairs, without padding: prompt and video are computed once, and both responses attend to them.

    [prompt 1 | chosen 1 | rejected 1 | prompt 2 | chosen 2 | rejected 2 | …]        one row; a response's positions start
                                                                                    where its prompt's end
The cost is Tp + 2 Tr tokens per pair instead of 2 (Tp + Tr), and one pass of the vision tower instead of two. Log-probs and
gradients are those of separate sequences, up to rounding (tests/test_shared_prefix.py).

Every layer except attention works token by token and does not notice the packing. Attention runs piece by piece: the prompt and
the first response form one causal piece, and each further response attends to the prompt's keys and values and its own. No [T, T]
mask is stored or multiplied: a causal kernel skips what lies above the diagonal, and a GPU's flash kernels handle both kinds of
piece (the second is causal from the lower right). With one mask over the whole row, a step takes 1.3 times as long
(docs/performance.md).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from vidalign.model.batch import Group
from vidalign.model.families import family_of

if TYPE_CHECKING:
    from vidalign.model.batch import Prompt

ATTENTION = "vidalign_shared_prefix"
GRIDS = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")  # what the positions of vision tokens depend on


def obstacle(model: Any) -> str:
    """Why this model's pairs take separate sequences, as the rest of a sentence that starts with its name; empty if they pack.

    A family packs if it was tested against separate sequences (`Family.packs`). A model of such a family packs if every layer
    attends to all earlier tokens: a window would be counted along the packed row.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if other := sorted(kinds - {"full_attention"}):
        return f"has layers of {', '.join(other)}, which do not attend to all earlier tokens"
    return "" if family_of(model).packs else "is not known to compute a pair in one sequence"


def wanted(model: Any, switched_on: bool) -> bool:
    """Whether to pack this model's pairs; warns if that is switched on but impossible for this model."""
    why = obstacle(model)
    if switched_on and why:
        warnings.warn(
            f"{type(model).__name__} {why}, so each pair takes two sequences; set train.shared_prefix to false to silence this",
            stacklevel=2,
        )
    return switched_on and not why


def enable(model: Any) -> None:
    """Give the language model the attention for packed rows; from then on it takes only packed rows."""
    from transformers import AttentionInterface

    why = obstacle(model)
    assert not why, why
    AttentionInterface.register(ATTENTION, attend)
    model.config.get_text_config()._attn_implementation = ATTENTION


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, T, D]
    key: torch.Tensor,  # [1, H or fewer, T, D]
    value: torch.Tensor,
    attention_mask: None,
    *,
    groups: Sequence[Group],
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:  # [1, T, H, D]
    """Attention over a packed row, with the signature of transformers' attention interface."""
    from torch.nn.attention.bias import causal_lower_right  # imports torch._dynamo, which takes most of a second

    assert attention_mask is None, "a packed row has no padding, so no mask"
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    # One split, not many slices: the gradient of a slice is as long as the row.
    sizes = [size for group in groups for size in (group.prompt + group.responses[0], *group.responses[1:])]
    pieces = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    out = []
    for group in groups:
        own_query, own_key, own_value = next(pieces)
        out.append(F.scaled_dot_product_attention(own_query, own_key, own_value, is_causal=True, **options))
        prompt = own_key[:, :, : group.prompt], own_value[:, :, : group.prompt]
        for length in group.responses[1:]:
            own_query, *own = next(pieces)
            keys, values = (torch.cat(both, dim=2) for both in zip(prompt, own, strict=True))
            bias = causal_lower_right(length, group.prompt + length)
            out.append(F.scaled_dot_product_attention(own_query, keys, values, attn_mask=bias, **options))
    return torch.cat(out, dim=2).transpose(1, 2), None


def numbering(model: Any) -> Callable[[Prompt], torch.Tensor]:
    """The function that gives a prompt's positions [axes, T] under this model; three axes if it numbers video tokens by them."""
    return functools.partial(_positions, getattr(model.base_model, "get_rope_index", None))


def _positions(get_rope_index: Callable[..., Any] | None, prompt: Prompt) -> torch.Tensor:
    if get_rope_index is None:
        return torch.arange(prompt.length)[None]
    vision = {name: value for name, value in prompt.vision.items() if name in GRIDS}
    tokens = {name: values[None] for name, values in prompt.tokens.items() if name in ("input_ids", "mm_token_type_ids")}
    return get_rope_index(**tokens, **vision)[0][:, 0]
