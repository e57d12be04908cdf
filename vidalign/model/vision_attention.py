"""Attention of vision towers that see a video in windows (`Family.windows`), in one call a layer or a few.

    one call a window                       transformers without flash attention: 3,616 calls for 16 frames of 448 x 448 in Qwen2.5-VL
    one call for all windows of a size      scaled_dot_product_attention with the windows as a batch
    one call for all windows                a kernel for sequences of many lengths: flash_attn's, or on a GPU PyTorch's own

A window is a part of a frame, or a whole frame where a layer attends to all of it. The numbers are those of one call a window:
equal in float32, and up to a kernel's rounding in float16 and bfloat16.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from vidalign.errors import ConfigError
from vidalign.model import families

Kind: TypeAlias = Literal["auto", "flash_attn", "sdpa"]
Kernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None], Tensor]

# transformers gives all windows at once to an attention with "flash" in its name, and one after the other to any other.
ATTENTION = "vidalign_windows_{}_as_flash"
HALF = (torch.float16, torch.bfloat16)
WIDEST_HEAD = 256  # of flash kernels
OLDEST_GPU = 8  # major compute capability of flash kernels

NEEDS_GPU = "model.vision_attention=flash_attn needs a GPU, but training computes on CPUs; set it to auto"
NOT_INSTALLED = (
    "model.vision_attention=flash_attn needs the package flash-attn, which is not installed; install it on every node, or set "
    "model.vision_attention to auto, which takes PyTorch's own kernel instead"
)

_sizes: Any = (
    WeakTensorKeyDictionary()
)  # {bounds of windows: their sizes}: all layers of a forward pass have the same bounds


def check(kind: Kind, model: Any, *, dtype: str, use_gpu: bool, here: bool = True) -> None:
    """Raises `ConfigError` where flash_attn is asked for and cannot be. `here`: this machine is one of those that train."""
    if kind != "flash_attn":
        return
    way_out = "set model.vision_attention to auto"
    if not families.family_of(model).windows:
        raise ConfigError(
            f"model.vision_attention={kind} is for vision towers that attend in windows, which {model.config.model_type} does not; "
            f"{way_out}"
        )
    if dtype not in ("float16", "bfloat16"):
        raise ConfigError(
            f"model.vision_attention={kind} computes in float16 or bfloat16, got model.dtype={dtype}; set one of them, or {way_out}"
        )
    if not use_gpu:
        raise ConfigError(NEEDS_GPU)
    if here and not is_installed():
        raise ConfigError(NOT_INSTALLED)


@functools.cache
def is_installed() -> bool:
    """Whether the package flash-attn is here."""
    return importlib.util.find_spec("flash_attn") is not None


def attend_by_windows(model: Any, kind: Kind) -> None:
    """Let a model's vision towers attend as `kind` says; models of families without windows are left alone.

    Args:
        kind: "flash_attn" is that package. "auto" is that package where it is installed and otherwise PyTorch's own kernel, on a GPU
            in float16 or bfloat16, and "sdpa" elsewhere. "sdpa" makes one call for all windows of a size.
    """
    from transformers import AttentionInterface

    if not families.family_of(model).windows:
        return
    name = ATTENTION.format(kind)
    AttentionInterface.register(name, functools.partial(attend, kind=kind))
    for tower in families.vision_towers(model):
        tower.config._attn_implementation = name


def attend(
    module: torch.nn.Module,
    query: Tensor,  # [1, H, T, D]
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    kind: Kind,
    cu_seq_lens_q: Tensor,  # [windows + 1] where each window starts, and T
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:  # [1, T, H, D]
    """Attention inside each window, with the signature of transformers' attention interface.

    Raises:
        ConfigError: flash_attn is asked for, and this is no GPU or it is not installed.
    """
    assert attention_mask is None, "windows have no mask"
    assert not dropout, "the towers of these families have none"
    kernel = kernel_for(kind, query)
    if kernel is not None:
        q, k, v = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))  # [T, H, D]
        return kernel(q, k, v, cu_seq_lens_q.to(torch.int32), max_length_q, scaling)[None], None
    return by_size(query, key, value, _sizes_of(cu_seq_lens_q), scaling), None


def by_size(query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int], scaling: float | None) -> Tensor:
    """[1, T, H, D] from [1, H, T, D]: one attention call for all windows of one size."""
    different = dict.fromkeys(sizes)
    if len(different) == 1:
        return _equal(query, key, value, sizes[0], scaling)
    window = torch.as_tensor(sizes, device=query.device)
    of_token = window.repeat_interleave(window)  # [T] the size of the window that a token is in
    places = {size: (of_token == size).nonzero()[:, 0] for size in different}
    parts = []
    for size, place in places.items():
        q, k, v = (each.index_select(2, place) for each in (query, key, value))
        parts.append(_equal(q, k, v, size, scaling))
    back = torch.cat(list(places.values())).argsort()
    return torch.cat(parts, dim=1).index_select(1, back)


def _equal(query: Tensor, key: Tensor, value: Tensor, size: int, scaling: float | None) -> Tensor:
    q, k, v = (each[0].unflatten(1, (-1, size)).transpose(0, 1) for each in (query, key, value))  # [windows, H, size, D]
    out = F.scaled_dot_product_attention(q, k, v, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1)[None]


def _sizes_of(bounds: Tensor) -> list[int]:
    if bounds not in _sizes:
        _sizes[bounds] = (bounds[1:] - bounds[:-1]).tolist()  # on a GPU this waits for all that was asked of it before
    return _sizes[bounds]


def kernel_for(kind: Kind, query: Tensor) -> Kernel | None:
    """The kernel that takes windows of all sizes in one call; None if there is none for this tensor."""
    if kind == "sdpa":
        return None
    if kind == "flash_attn" and not (query.is_cuda and is_installed()):
        raise ConfigError(NOT_INSTALLED if query.is_cuda else NEEDS_GPU)
    if not query.is_cuda:
        return None
    if query.dtype not in HALF or query.shape[-1] % 8 or query.shape[-1] > WIDEST_HEAD:
        return None
    if torch.cuda.get_device_capability(query.device)[0] < OLDEST_GPU:
        return None
    if is_installed():
        return _flash_attn
    return _torch_kernel if torch.backends.cuda.is_flash_attention_available() else None


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float | None) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, softmax_scale=scaling)


def _torch_kernel(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scaling)
