"""What a run will cost, computed from the model folder's small files: vision tokens, context, memory. Loads no weights.

Vision tokens follow transformers' own arithmetic for Qwen2-VL and Qwen2.5-VL (frames resized so that both sides are divisible by
patch x merge, within the processor's pixel bounds; `temporal_patch` frames make one step in time). Other processors have no
closed form here (`Family.counted_processors`): `read_vision_cost` returns None, and the caller measures with the processor.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Callable, Mapping
from typing import Any

from vidalign.config.run import TrainConfig
from vidalign.errors import ModelError
from vidalign.files import read_json
from vidalign.model.families import FAMILIES

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionCost:
    """How a Qwen2-VL-like processor turns frames into tokens.

    The pixel bounds apply to a frame. `max_video_tokens` bounds a video if the processor spreads a budget over all frames, and is
    None if it does not.
    """

    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    max_video_tokens: int | None = None

    def resized(self, num_frames: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) of each frame as the vision tower sees it."""
        factor, most = self.patch * self.merge, self.max_pixels
        if self.max_video_tokens is not None:
            budget = int(self.max_video_tokens * factor * factor * 0.9)
            most = max(min(most, budget * self.temporal_patch // num_frames), int(self.min_pixels * 1.05))
        new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
        if new_height * new_width > most:
            shrink = math.sqrt(height * width / most)
            new_height = max(factor, math.floor(height / shrink / factor) * factor)
            new_width = max(factor, math.floor(width / shrink / factor) * factor)
        elif new_height * new_width < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new_height = math.ceil(height * grow / factor) * factor
            new_width = math.ceil(width * grow / factor) * factor
        return new_height, new_width

    def tokens(self, num_frames: int, height: int, width: int) -> int:
        """The number of vision tokens of a video with `num_frames` frames of height x width pixels."""
        new_height, new_width = self.resized(num_frames, height, width)
        factor = self.patch * self.merge
        return math.ceil(num_frames / self.temporal_patch) * (new_height // factor) * (new_width // factor)


def read_vision_cost(model_dir: str | pathlib.Path) -> VisionCost | None:
    """The processor's numbers, or None if there is no closed form for its tokens here.

    Raises:
        ModelError: the folder has no processor config.
    """
    folder = pathlib.Path(model_dir)
    found = None
    for name in ("video_preprocessor_config.json", "processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            raw = read_json(folder / name)
            found = raw.get("video_processor", raw)
            if "patch_size" in found:
                break
    if found is None:
        raise ModelError(
            f"{folder} has no processor_config.json, preprocessor_config.json or video_preprocessor_config.json; copy the "
            "processor's files into this folder"
        )
    kind = found.get("video_processor_type") or found.get("image_processor_type")
    if not any(kind in family.counted_processors for family in FAMILIES.values()):
        return None
    size = found.get("size") or {}
    defaults = VisionCost()
    return VisionCost(
        patch=found.get("patch_size", defaults.patch),
        merge=found.get("merge_size", defaults.merge),
        temporal_patch=found.get("temporal_patch_size", defaults.temporal_patch),
        min_pixels=found.get("min_pixels") or size.get("shortest_edge") or defaults.min_pixels,
        max_pixels=found.get("max_pixels") or size.get("longest_edge") or defaults.max_pixels,
        max_video_tokens=found.get("max_video_tokens", 128_000) if found.get("cap_pixels_per_frame") else None,
    )


def check_context(
    tokens_of: Callable[[int], int],
    *,
    num_frames: int,
    frames_key: str,
    num_text_tokens: int,
    max_new_tokens: int,
    max_model_len: int,
    model_limit: int | None = None,
    reply_key: str = "recipe.max_new_tokens",
    where: str = "",
) -> int:
    """The number of tokens of the longest sequence (vision + text + response), if it fits into the context.

    Args:
        tokens_of: vision tokens as a function of the number of frames, not decreasing.
        frames_key: the config key that bounds the frames, for the message.
        reply_key: the config key that bounds the response, for the message.
        model_limit: the number of positions the model was made for, which `max_model_len` cannot exceed.
        where: the video or the example with the largest need, for the message.

    Raises:
        ModelError: it does not fit. The message says how many frames would, or how long the context would have to be.
    """
    if model_limit is not None and max_model_len > model_limit:
        raise ModelError(
            f"model.max_model_len={max_model_len:,}, but the model was made for {model_limit:,} positions; lower "
            f"model.max_model_len to {model_limit}"
        )
    vision = tokens_of(num_frames)
    needed = vision + num_text_tokens + max_new_tokens
    if needed <= max_model_len:
        return needed
    ways_out = []
    fits = frames_that_fit(tokens_of, num_frames, max_model_len - num_text_tokens - max_new_tokens)
    if fits:
        ways_out.append(f"lower {frames_key} to {fits}")
    if model_limit is None or needed <= model_limit:
        ways_out.append(f"raise model.max_model_len to {needed}")
    if not fits:
        ways_out.append(f"shorten the prompts, lower {reply_key}, or make the frames smaller with video.max_pixels")
    raise ModelError(
        f"{frames_key}={num_frames} needs {vision:,} vision tokens, plus {num_text_tokens:,} for the prompt and "
        f"{max_new_tokens:,} for the response{f' ({where})' if where else ''}, but max_model_len={max_model_len:,}; "
        f"{' or '.join(ways_out)}"
    )


def frames_that_fit(tokens_of: Callable[[int], int], num_frames: int, budget: int) -> int:
    """The most frames, up to `num_frames`, whose vision tokens stay within `budget`; 0 if not even one frame does."""
    low, high = 0, num_frames
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens_of(middle) <= budget else (low, middle - 1)
    return low


def read_parameter_shapes(model_dir: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor, from the headers of the folder's safetensors files.

    Raises:
        ModelError: there is no safetensors file, or one has a broken header.
    """
    folder = pathlib.Path(model_dir)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in _header(path).items():
            if name != "__metadata__":
                shapes[name] = tuple(entry["shape"])
    if not shapes:
        raise ModelError(
            f"{folder} holds no *.safetensors weights; save the model with save_pretrained(safe_serialization=True)"
        )
    return shapes


def _header(path: pathlib.Path) -> dict[str, Any]:
    """Read a safetensors header. The format is a little-endian 64-bit length, that many bytes of JSON, then the data."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise ModelError(f"{path} is not a complete safetensors file (is it a Git LFS pointer?); download it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ModelError(f"{path} has a broken safetensors header; download it again") from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size < 8 + length + end:
        raise ModelError(
            f"{path} is cut: its header promises {8 + length + end:,} bytes, but it has {path.stat().st_size:,}; download it again"
        )
    return header


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """The number of all parameters, and of those that training changes (with LoRA, the adapter's)."""

    total: int
    trainable: int


def count_parameters(model: Any, train: TrainConfig) -> ParameterCount:
    """Count a model's parameters and those that `vidalign.model.policy` trains.

    The model may be on the meta device (`vidalign.model.policy.outline`). Its `requires_grad` flags are changed.
    """
    from vidalign.model import policy

    total = sum(parameter.numel() for parameter in model.parameters())
    if train.lora is not None:
        layers = policy.adapter_targets(model).values()
        adapter = train.lora.rank * sum(layer.in_features + layer.out_features for layer in layers)
        return ParameterCount(total=total + adapter, trainable=adapter)
    policy.set_trainable(model, vision_tower=train.train_vision_tower, projector=train.train_projector)
    return ParameterCount(total=total, trainable=sum(p.numel() for p in model.parameters() if p.requires_grad))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMemory:
    """Bytes that each worker holds between steps. Activations come on top; they depend on the kernels and are not estimated."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum of the three."""
        return self.weights + self.gradients + self.optimizer


def train_memory(count: ParameterCount, train: TrainConfig, dtype: str) -> TrainMemory:
    """Bytes of model state per worker under ZeRO with AdamW.

    Source: ZeRO, arXiv 1910.02054, section 3.1 and figure 1. Optimizer states are two float32 moments and a float32 copy of
    the trained weights. Stage 1 divides them among the workers, stage 2 also the gradients, stage 3 also the weights. In float32
    at stage 0 the weights need no copy.
    """
    size, workers = BYTES[dtype], train.num_workers
    copies = 8 if train.zero_stage == 0 and dtype == "float32" else 12
    return TrainMemory(
        weights=math.ceil(count.total * size / (workers if train.zero_stage >= 3 else 1)),
        gradients=math.ceil(count.trainable * size / (workers if train.zero_stage >= 2 else 1)),
        optimizer=math.ceil(count.trainable * copies / (workers if train.zero_stage >= 1 else 1)),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """Bytes per device of one vLLM engine: its share of the weights, and the key-value cache of one sequence."""

    weights: int
    kv_per_sequence: int


def engine_memory(
    num_parameters: int, model_config: Mapping[str, Any], *, dtype: str, num_devices: int, max_model_len: int
) -> EngineMemory:
    """Memory of an engine whose tensor parallelism divides weights and key-value heads. `model_config` is the folder's config.json."""
    text = model_config.get("text_config") or model_config
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    kv_heads = text.get("num_key_value_heads") or heads
    per_device = max(1, math.ceil(kv_heads / num_devices))
    per_token = 2 * text["num_hidden_layers"] * per_device * head_dim * BYTES[dtype]
    return EngineMemory(
        weights=math.ceil(num_parameters * BYTES[dtype] / num_devices),
        kv_per_sequence=per_token * max_model_len,
    )


def position_limit(model_config: Mapping[str, Any]) -> int | None:
    """The number of positions that the language model was made for, or None if its config does not say."""
    text = model_config.get("text_config") or model_config
    return text.get("max_position_embeddings")
