"""One forward for a pair: prompt and video are computed once, and both responses attend to them.

    [prompt with video | chosen | rejected]      rejected does not see chosen, and its positions start where chosen's do

The cost is Tp + 2 Tr tokens instead of 2 (Tp + Tr), and one pass of the vision tower instead of two. Log-probs and gradients are
those of two separate sequences, up to rounding (tests/test_shared_prefix.py). It takes an attention that accepts a mask of
[B, 1, T, T] (PyTorch's scaled dot-product attention does) and a model whose layers all attend fully.
"""

from __future__ import annotations

from typing import Any

import torch

from vidalign.positions import MODEL_TYPES

CHOSEN, REJECTED = 1, 2  # segments; 0 is the prompt, negative is padding


def is_supported(model: Any) -> bool:
    """Whether the model's architecture is one whose shared-prefix forward was tested against separate sequences."""
    return model.config.model_type in MODEL_TYPES


def model_inputs(inputs: dict[str, torch.Tensor], backbone: Any) -> dict[str, torch.Tensor]:
    """Replace `segments` [B, T] by the attention mask [B, 1, T, T] and position ids [3, B, T] that it stands for."""
    rest = {name: value for name, value in inputs.items() if name != "segments"}
    segments = inputs["segments"]
    return {
        **rest,
        "attention_mask": attention_mask(segments),
        "position_ids": position_ids(rest, segments, backbone),
    }


def attention_mask(segments: torch.Tensor) -> torch.Tensor:
    """[B, 1, T, T] bool, True where a position (second to last axis) may look. Padding sees itself, so that no row is empty."""
    own = segments[:, None, :] == segments[:, :, None]
    seen = own | (segments[:, None, :] == 0)
    return (seen & torch.ones_like(seen).tril())[:, None]


def position_ids(inputs: dict[str, torch.Tensor], segments: torch.Tensor, backbone: Any) -> torch.Tensor:
    """Positions of prompt and chosen as the model counts them; rejected goes on where the prompt ends."""
    first = (segments == 0) | (segments == CHOSEN)
    vision = {name: inputs[name] for name in ("video_grid_thw", "second_per_grid_ts") if name in inputs}
    positions, deltas = backbone.get_rope_index(
        inputs["input_ids"], mm_token_type_ids=inputs["mm_token_type_ids"], attention_mask=first, **vision
    )
    index = torch.arange(segments.shape[1], device=segments.device)
    restarted = index - (segments == CHOSEN).sum(-1, keepdim=True) + deltas  # [B, T]
    return torch.where(segments == REJECTED, restarted, positions)
