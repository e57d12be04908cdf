"""What a prompt will cost, computed from the model folder's small files: vision tokens and context. Loads no weights.

Vision tokens follow transformers' own arithmetic for Qwen2-VL and Qwen2.5-VL (frames resized so that both sides are divisible by
patch x merge, within the processor's pixel bounds; `temporal_patch` frames make one step in time). Other processors have no
closed form here (`Family.counted_processors`): `read_vision_cost` returns None, and the caller measures with the processor.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any

from vidalign.errors import ModelError
from vidalign.files import read_json
from vidalign.model.families import FAMILIES


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


def check_patches(folder: pathlib.Path, cost: VisionCost | None, model_config: Any) -> None:
    """Raises `ModelError` where a processor cuts videos into other patches than the vision tower takes."""
    tower = getattr(model_config, "vision_config", None)
    if cost is None or tower is None:
        return
    for ours, theirs, name in (
        (cost.patch, "patch_size", "patch_size"),
        (cost.merge, "spatial_merge_size", "merge_size"),
        (cost.temporal_patch, "temporal_patch_size", "temporal_patch_size"),
    ):
        takes = getattr(tower, theirs, ours)
        if isinstance(takes, int) and takes != ours:
            raise ModelError(
                f"{folder}: the processor has {name}={ours}, but the vision tower takes {theirs}={takes}; they are not of one model: "
                "take the processor's files and config.json from the same checkpoint"
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


def position_limit(model_config: Any) -> int | None:
    """The number of positions that the language model was made for, or None if its config does not say."""
    return getattr(model_config.get_text_config(), "max_position_embeddings", None)
