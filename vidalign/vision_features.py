"""What a frozen vision tower and its projector make of each video, computed once before training and kept by content.

Training then reads the language model's video embeddings [T, D] in place of pixels, and the tower is not run any more.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import torch

from vidalign.errors import ConfigError
from vidalign.rendering import Prompt
from vidalign.tensor_cache import TensorCache, read_tensors, write_tensors

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "llava_onevision")
NAME = "video_features"  # among a prompt's vision tensors, in place of pixels


def check(model: Any) -> None:
    """Raises `ConfigError` for an architecture whose video embeddings are more than one tensor."""
    if model.config.model_type not in MODEL_TYPES:
        raise ConfigError(
            f"train.cache_vision_features works for {', '.join(MODEL_TYPES)}, and this model is {model.config.model_type}; set it "
            "to false"
        )


def path(cache: TensorCache, policy_version: str, dtype: str, clip: str) -> pathlib.Path:
    """Where a clip's features are kept. A clip's file name is a hash of the video's bytes and its FrameSpec."""
    return cache.path({"policy": policy_version, "dtype": dtype, "clip": pathlib.Path(clip).name})


@torch.no_grad()
def compute(model: Any, videos: Iterable[tuple[Prompt, pathlib.Path]], device: torch.device, dtype: torch.dtype) -> int:
    """Write the features of these prompts' videos where there are none yet; how many were computed.

    The tower is moved to the device and stays there; the language model stays where it is.
    """
    backbone = getattr(model, model.base_model_prefix)
    for name, child in backbone.named_children():
        if name != "language_model":
            child.to(device)
    count = 0
    for prompt, target in videos:
        if target.is_file():
            continue
        pixels = {name: value.to(device) for name, value in prompt.vision.items() if name != "second_per_grid_ts"}
        pixels["pixel_values_videos"] = pixels["pixel_values_videos"].to(dtype)
        made = backbone.get_video_features(**pixels, return_dict=True).pooler_output
        features = made.flatten(0, 1) if isinstance(made, torch.Tensor) and made.ndim == 3 else torch.cat(tuple(made))
        write_tensors(target, {"features": features})
        count += 1
    return count


def in_place_of_pixels(prompt: Prompt, file: pathlib.Path) -> Prompt:
    """The prompt with its video's features."""
    vision = {name: value for name, value in prompt.vision.items() if not name.startswith("pixel_values")}
    return dataclasses.replace(prompt, vision={**vision, NAME: read_tensors(file)["features"]})


def model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the model's forward, the features among them as transformers takes them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    rest = {name: value for name, value in inputs.items() if name != NAME}
    features = inputs[NAME]  # of all videos, end to end
    # The Qwen family joins a tuple of videos, LLaVA-OneVision flattens [B, T, D].
    made: Any = (features,) if "video_grid_thw" in inputs else features[None]
    output = BaseModelOutputWithPooling(pooler_output=made)
    return {**rest, "mm_encoder_outputs": {"video": output}}
