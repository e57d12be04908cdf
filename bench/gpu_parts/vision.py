"""A vision tower's forward pass on one video, by the attention that its windows go through, at the shape of Qwen2.5-VL's."""

from __future__ import annotations

import pathlib
from typing import Any

import torch

from bench.gpu_parts.facts import median_seconds
from bench.gpu_parts.models import SHAPES, config_of
from vidalign.model.vision_attention import attend_by_windows, is_installed

ONE_BY_ONE = "one call a window"


def vision(work: pathlib.Path, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Seconds of each way, and the largest difference of its features from one call a window, relative to the largest feature."""
    from transformers import AutoModelForImageTextToText

    shape = SHAPES["tiny" if quick else "3B"]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = config_of(shape)
    config.text_config.num_hidden_layers = 1
    config.text_config.layer_types = ["full_attention"]
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    tower = model.model.visual
    steps, patches = shape.num_frames // 2, shape.side // 14
    grid = torch.tensor([[steps, patches, patches]], device=device)
    pixels = torch.randn((steps * patches**2, 3 * 2 * 14 * 14), device=device).to(dtype)

    @torch.inference_mode()
    def features() -> torch.Tensor:
        made = tower(pixels, grid_thw=grid)
        return made if isinstance(made, torch.Tensor) else made.pooler_output

    times = 1 if quick else 5
    first = features().float()
    found: dict[str, Any] = {ONE_BY_ONE: {"seconds": median_seconds(features, device, times=times, warm_up=1)}}
    for kind in ("sdpa", "auto"):
        attend_by_windows(model, kind)  # type: ignore[arg-type]
        made = features().float()
        found[kind] = {
            "seconds": median_seconds(features, device, times=times, warm_up=1),
            "difference": ((made - first).abs().max() / first.abs().max()).item(),
        }
    return {"ways": found, "num_frames": shape.num_frames, "side": shape.side, "flash_attn": is_installed()}
