"""What a frozen vision tower and its projector make of each video, computed once before training and kept by content.

Training then reads the language model's video embeddings [T, D] in place of pixels, and the tower is not run any more.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

import torch

from vidalign.errors import ConfigError
from vidalign.model.batch import Prompt
from vidalign.model.rendering import render_without_pixels
from vidalign.model.tensor_cache import TensorCache, read_tensors, write_tensors
from vidalign.types import stable_hash

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "llava_onevision")
LANGUAGE_MODEL = "language_model"  # the backbone's part that has no say in the features; all others may have one
PIXELS = "pixel_values_videos"
NAME = "video_features"  # among a prompt's vision tensors, in place of pixels


def check(model: Any) -> None:
    """Raises `ConfigError` for an architecture whose video embeddings are more than one tensor."""
    if model.config.model_type not in MODEL_TYPES:
        raise ConfigError(
            f"train.cache_vision_features works for {', '.join(MODEL_TYPES)}, and this model is {model.config.model_type}; set it "
            "to false"
        )


def tower_hash(model: Any, processor: Any) -> str:
    """Hash of all that a clip's features are made with: weights, buffers and config outside the language model, and the settings of
    the video processor. Two policies that differ in their language models alone have the same.
    """
    backbone = getattr(model, model.base_model_prefix)
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}.items()):
        if not name.startswith(f"{LANGUAGE_MODEL}."):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = {name: value for name, value in model.config.to_dict().items() if name not in ("text_config", "_name_or_path")}
    return stable_hash([digest.hexdigest(), config, processor.video_processor.to_dict()], 32)


def path(cache: TensorCache, tower: str, clip: str) -> pathlib.Path:
    """Where a clip's features by a tower (its `tower_hash`) are kept. A clip's file name is a hash of the video's bytes and its
    FrameSpec."""
    return cache.path({"tower": tower, "clip": pathlib.Path(clip).name})


@torch.no_grad()
def compute(model: Any, videos: Iterable[tuple[Prompt, pathlib.Path]], device: torch.device, dtype: torch.dtype) -> int:
    """Write the features of these prompts' videos where there are none yet; how many were computed. A file also holds what else a
    prompt says of its video: grid and seconds a step.

    The tower is moved to the device and stays there; the language model stays where it is.
    """
    backbone = getattr(model, model.base_model_prefix)
    for name, child in backbone.named_children():
        if name != LANGUAGE_MODEL:
            child.to(device)
    count = 0
    for prompt, target in videos:
        if target.is_file():
            continue
        taken = {name: value.to(device) for name, value in prompt.vision.items() if name != "second_per_grid_ts"}
        taken[PIXELS] = taken[PIXELS].to(dtype)
        made = backbone.get_video_features(**taken, return_dict=True).pooler_output
        features = made.flatten(0, 1) if isinstance(made, torch.Tensor) and made.ndim == 3 else torch.cat(tuple(made))
        beside = {name: value for name, value in prompt.vision.items() if name != PIXELS}
        write_tensors(target, {NAME: features, **beside})
        count += 1
    return count


def render(processor: Any, text: str, file: pathlib.Path) -> Prompt:
    """The prompt that `rendering.render_prompt` gives of this text and the clip whose features are in `file`, with the features in
    place of pixels. No frame is read: processors of `MODEL_TYPES` expand a video to as many tokens as it has embeddings.
    """
    vision = read_tensors(file)
    return render_without_pixels(processor, text, len(vision[NAME]), vision)


def model_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the model's forward, the features among them as transformers takes them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    rest = {name: value for name, value in inputs.items() if name != NAME}
    features = inputs[NAME]  # of all videos, end to end
    # The Qwen family joins a tuple of videos, LLaVA-OneVision flattens [B, T, D].
    made: Any = (features,) if "video_grid_thw" in inputs else features[None]
    output = BaseModelOutputWithPooling(pooler_output=made)
    return {**rest, "mm_encoder_outputs": {"video": output}}
