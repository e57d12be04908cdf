"""Does a model take a clip at all? By its shape, as its processor sees it, and by its length, as its table of positions allows.

A clip that it does not take is quarantined before an engine or a trainer sees it: there it would end the run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vidalign.errors import VideoError
from vidalign.model.loading import read_config
from vidalign.model.positions import longest_video_s
from vidalign.model.rendering import cached_processor, render_prompt
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import read_shape

TRIED_FRAMES = 4  # as many as any processor joins into one step in time


class ClipCheck:
    """For the model of one folder. Each size of frames is tried once, with few black frames."""

    def __init__(self, path: str, *, max_model_len: int, trust_remote_code: bool = False) -> None:
        """Raises `ModelError` for a folder without a config or processor."""
        self._processor = cached_processor(path, trust_remote_code)
        self._longest_s = longest_video_s(read_config(path, trust_remote_code=trust_remote_code), max_model_len)
        self._obstacle = functools.lru_cache(maxsize=4096)(functools.partial(obstacle, self._processor))

    def __call__(self, name: str, num_frames: int, height: int, width: int, duration_s: float) -> None:
        """Raise `VideoError` for a clip of this shape and length that the model does not take: too_long or unfit."""
        if duration_s > self._longest_s:
            raise VideoError(
                "too_long",
                f"{name} is {duration_s:,.0f} s long, and this model counts time in positions, of which it has enough for "
                f"{self._longest_s:,.0f} s beside a prompt; cut the video, or lower model.max_model_len",
            )
        why = self._obstacle(min(num_frames, TRIED_FRAMES), height, width)
        if why:
            raise VideoError(
                "unfit",
                f"{name}: this model's processor takes no {num_frames} frames of {width}x{height} ({why}); set video.height and "
                "video.width, or leave the video out",
            )


def quarantined(decoded: Iterable[Mapping[str, str]], takes: ClipCheck) -> list[dict[str, str]]:
    """Rows of `vidalign.video.decode_child.DecodedVideo` with the clips quarantined that the model does not take."""
    rows = []
    for row in decoded:
        refused: dict[str, str] = {}
        if row["frames_path"]:
            (num_frames, height, width, _), duration_s = read_shape(row["frames_path"])
            try:
                takes(row["video"], num_frames, height, width, duration_s)
            except VideoError as error:
                refused = {"frames_path": "", "reason": error.reason, "message": error.message}
        rows.append({**row, **refused})
    return rows


def obstacle(processor: Any, num_frames: int, height: int, width: int) -> str:
    """What the processor says to so many frames of this size; empty if it takes them."""
    try:
        render_prompt(processor, "", black(num_frames, height, width))
    except (ValueError, ZeroDivisionError, IndexError, RuntimeError, TypeError, AssertionError) as error:
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def black(num_frames: int, height: int, width: int) -> Clip:
    """A clip of black frames, one a second."""
    return Clip(
        frames=np.zeros((num_frames, height, width, 3), np.uint8),
        fps=1.0,
        total_num_frames=num_frames,
        duration_s=float(num_frames),
        indices=tuple(range(num_frames)),
    )
