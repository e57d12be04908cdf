"""The output of a frozen vision tower and its projector for each video, computed once before training and kept by content.

Training then reads the language model's video embeddings [T, D] in place of pixels, and the tower no longer runs.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

import torch

from vidalign.errors import ConfigError
from vidalign.model import families
from vidalign.model.batch import PIXELS, Prompt
from vidalign.model.rendering import render_without_pixels
from vidalign.model.tensor_cache import TensorCache, read_tensors, write_tensors
from vidalign.prompts import ONE_VIDEO
from vidalign.records import Context
from vidalign.types import stable_hash
from vidalign.video.naming import short

NAME = "video_features"  # the name among a prompt's vision tensors, in place of pixels


def check(model: Any) -> None:
    """Raises `ConfigError` for a family that takes no embeddings in place of pixels (`Family.takes_features`)."""
    if families.family_of(model).takes_features is None:
        fitting = [name for name, family in families.FAMILIES.items() if family.takes_features is not None]
        raise ConfigError(
            f"train.cache_vision_features works only for {', '.join(fitting)}, but this model is {model.config.model_type}; set "
            "it to false"
        )


def check_shown(contexts: Iterable[Context]) -> None:
    """Raises `ConfigError` for a prompt that shows several videos, or images: their features are not kept."""
    for context in contexts:
        if len(context.visuals) != 1 or context.images:
            raise ConfigError(
                "train.cache_vision_features keeps the features of prompts with one video, but a row shows "
                f"{', '.join(map(short, context.visuals))}; set it to false, or leave such rows out"
            )


def tower_hash(model: Any, processor: Any) -> str:
    """Hash of everything that decides a clip's features.

    That is the weights, buffers and config outside the language model, and the settings of the video processor. Two policies that
    differ only in their language models have the same hash.
    """
    backbone, language = model.base_model, families.decoder(model)
    without = {id(tensor) for tensor in (*language.parameters(), *language.buffers())}
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}.items()):
        if id(tensor) not in without:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    config = {name: value for name, value in model.config.to_dict().items() if name not in ("text_config", "_name_or_path")}
    return stable_hash([digest.hexdigest(), config, processor.video_processor.to_dict()], 32)


def path(cache: TensorCache, tower: str, clip: str) -> pathlib.Path:
    """The file for the features of a clip under a tower (its `tower_hash`).

    A clip's own file name is a hash of the video's bytes and its FrameSpec.
    """
    return cache.path({"tower": tower, "clip": pathlib.Path(clip).name})


def modules(model: Any) -> list[torch.nn.Module]:
    """The parts of a model that make a video's features: all beside the language model."""
    language = families.decoder(model)
    return [child for child in model.base_model.children() if child is not language]


@torch.no_grad()
def compute(model: Any, videos: Iterable[tuple[Prompt, pathlib.Path]], device: torch.device, dtype: torch.dtype) -> int:
    """Write the features of these prompts' videos if their files are missing, and return how many were computed.

    A file also holds what else a prompt says about its video: the grid and the seconds per step. The tower is moved to the device
    and stays there; the language model stays where it is.
    """
    backbone = model.base_model
    for module in modules(model):
        module.to(device)
    count = 0
    for prompt, target in videos:
        if target.is_file():
            continue
        taken = {name: value.to(device) for name, value in prompt.vision.items() if name != "second_per_grid_ts"}
        taken[PIXELS] = taken[PIXELS].to(dtype)
        made = backbone.get_video_features(**taken, return_dict=True).pooler_output
        features = torch.cat([video.flatten(0, -2) for video in made])  # of a tuple, or of [1, T, D]
        beside = {name: value for name, value in prompt.vision.items() if name != PIXELS}
        write_tensors(target, {NAME: features, **beside})
        count += 1
    return count


def render(processor: Any, text: str, file: pathlib.Path, context: Context = ONE_VIDEO) -> Prompt:
    """The prompt of `rendering.render_prompt` for this text and the clip whose features are in `file`, which replace the pixels.

    No frame is read: the processors of these families expand a video into as many tokens as it has embeddings.
    """
    vision = read_tensors(file)
    return render_without_pixels(processor, text, len(vision[NAME]), vision, context)


def model_inputs(inputs: dict[str, Any], family: families.Family) -> dict[str, Any]:
    """Keyword arguments for the forward of a model of this family, with the features in the form that transformers takes."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    rest = {name: value for name, value in inputs.items() if name != NAME}
    assert family.takes_features is not None
    output = BaseModelOutputWithPooling(pooler_output=family.takes_features(inputs[NAME]))  # of all videos, end to end
    return {**rest, "mm_encoder_outputs": {"video": output}}
