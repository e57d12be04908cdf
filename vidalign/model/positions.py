"""Positions of Qwen2-VL and Qwen2.5-VL prompts (`Family.mrope`), by the rule the models were trained with and vLLM follows.

There are three axes (time, height, width). Text counts up on all three. A video's tokens take their grid coordinates, with steps
of `tokens_per_second * seconds per grid step` on the time axis. The text after a video starts one past the *largest* position so
far (Qwen2-VL, arXiv 2409.12191, section 2.1). transformers 5.19 starts it one past the video's height or width instead. This is
the same unless a video spans more time steps than rows and columns; then training would see other positions than generation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from vidalign.errors import ModelError
from vidalign.model.families import FAMILIES, GENERAL, family_of

TEXT, IMAGE, VIDEO = 0, 1, 2  # kinds of tokens, as processors number them
VLLM_TABLE = 4  # times max_position_embeddings: the rows of vLLM's table for M-RoPE


def mrope_positions(
    token_types: Sequence[int], grids: Sequence[Sequence[int]], time_steps: Sequence[float], merge_size: int
) -> torch.Tensor:
    """Positions [3, T] of one prompt.

    Args:
        token_types: [T] 0 for text, anything else for the placeholder tokens of a video or image.
        grids: (frames, rows, columns) in patches before merging, one for each run of placeholders, in order.
        time_steps: how far one step on a grid's time axis counts, one value for each grid.
    """
    parts: list[torch.Tensor] = []
    start = 0
    vision = iter(zip(grids, time_steps, strict=True))
    for kind, run in itertools.groupby(token_types):
        length = len(list(run))
        if kind == TEXT:
            part = torch.arange(length).expand(3, -1)
        else:
            (frames, rows, columns), step = next(vision)
            shape = (int(frames), int(rows) // merge_size, int(columns) // merge_size)
            part = torch.stack([axis.flatten() for axis in torch.meshgrid(*map(torch.arange, shape), indexing="ij")])
            part[0] = (part[0] * step).long()
            assert part.shape[1] == length, f"{length} placeholders for a grid of {part.shape[1]}"
        parts.append(part + start)
        start = int(parts[-1].max()) + 1
    return torch.cat(parts, dim=1)


def largest_position(num_tokens: int, grids: Sequence[Sequence[int]], time_steps: Sequence[float], merge_size: int) -> int:
    """The largest number in `mrope_positions` of a prompt of so many tokens, which ends with text."""
    end = num_tokens
    for (frames, rows, columns), step in zip(grids, time_steps, strict=True):
        height, width = int(rows) // merge_size, int(columns) // merge_size
        end += max(int((int(frames) - 1) * step) + 1, height, width) - int(frames) * height * width
    return end - 1


def time_steps(model_config: Any, seconds_per_grid: Sequence[float] | None, num_videos: int) -> list[float]:
    """What one step on each video's time axis counts, from the seconds that it takes: 1 where the model counts no seconds."""
    rate = getattr(model_config.vision_config, "tokens_per_second", None)
    if rate is None or seconds_per_grid is None:
        return [1.0] * num_videos
    return [float(seconds) * rate for seconds in seconds_per_grid]


def check_positions(
    model_config: Any,
    num_tokens: int,
    max_new_tokens: int,
    grids: Sequence[Sequence[int]],
    seconds_per_grid: Sequence[float] | None,
) -> None:
    """Raise `ModelError` for a prompt and reply that reach beyond vLLM's table of positions, where its engine would die.

    `grids`: (frames, rows, columns) of each video. `seconds_per_grid`: what a processor gives as second_per_grid_ts.
    """
    if not FAMILIES.get(model_config.model_type, GENERAL).mrope:
        return  # others count tokens, or frames
    limit = VLLM_TABLE * model_config.get_text_config().max_position_embeddings
    merge_size = model_config.vision_config.spatial_merge_size
    steps = time_steps(model_config, seconds_per_grid, len(grids))
    needed = largest_position(num_tokens, grids, steps, merge_size) + max_new_tokens
    if needed >= limit:
        length = max(
            (int(grid[0]) * float(step) for grid, step in zip(grids, seconds_per_grid or [0.0], strict=False)), default=0.0
        )
        raise ModelError(
            f"a video of about {length:,.0f} s takes positions up to {needed:,}, and this model's engine has {limit:,}: it counts "
            "time in positions. Lower video.max_duration_s, so that such videos are quarantined, or leave the video out"
        )


def longest_video_s(model_config: Any, max_model_len: int) -> float:
    """Seconds of video up to which no prompt of at most `max_model_len` tokens, reply included, runs out of vLLM's table."""
    rate = getattr(getattr(model_config, "vision_config", None), "tokens_per_second", None)
    if not rate or not FAMILIES.get(model_config.model_type, GENERAL).mrope:
        return math.inf
    return max(0.0, VLLM_TABLE * model_config.get_text_config().max_position_embeddings - max_model_len) / rate


def correct_positions(model: Any) -> None:
    """Make a Hugging Face model number its tokens as above; models of families that count differently are left alone."""
    if not family_of(model).mrope:
        return
    inner = model.base_model
    merge_size = model.config.vision_config.spatial_merge_size
    rate = getattr(model.config.vision_config, "tokens_per_second", 1.0)

    def get_rope_index(
        input_ids: torch.Tensor,  # [B, T]
        mm_token_type_ids: torch.Tensor,  # [B, T]
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # positions [3, B, T], and by how much they fall short of the token index [B, 1]
        grids = {
            kind: iter([] if grid is None else grid.tolist())
            for kind, grid in ((IMAGE, image_grid_thw), (VIDEO, video_grid_thw))
        }
        seconds = iter([] if second_per_grid_ts is None else [float(value) for value in second_per_grid_ts])
        positions = torch.zeros((3, *input_ids.shape), dtype=torch.long)
        deltas = []
        for row, types in enumerate(mm_token_type_ids.cpu()):
            real = slice(None) if attention_mask is None else attention_mask[row].bool().cpu()
            kinds = types[real].tolist()
            runs = [kind for kind, _ in itertools.groupby(kinds) if kind != TEXT]
            steps = [next(seconds, 1.0 / rate) * rate if kind == VIDEO else 1.0 for kind in runs]
            made = mrope_positions(kinds, [next(grids[kind]) for kind in runs], steps, merge_size)
            positions[:, row, real] = made
            deltas.append(int(made.max()) + 1 - len(kinds))
        device = input_ids.device
        return positions.to(device), torch.tensor(deltas, device=device)[:, None]

    inner.get_rope_index = get_rope_index
