"""Does a model take a clip at all? By its processor, for its shape; by its table of positions, for its length; by its context.

A clip that it does not take is quarantined before an engine or a trainer sees it: there it would end the run.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vidalign.errors import VideoError
from vidalign.model.estimate import read_vision_cost
from vidalign.model.folder import model_folder
from vidalign.model.loading import read_config
from vidalign.model.positions import longest_video_s
from vidalign.model.rendering import cached_processor, prompt_ids, render_prompt
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import read_shape
from vidalign.video.naming import visual_of, without_question

SURE_SHARE = 0.8  # of the room in the context: a guess below it needs no measurement
TRIED_FRAMES = 4  # as many as any processor joins into one step in time


class ClipCheck:
    """For the model of one folder. Each size of frames is tried once, with few black frames."""

    def __init__(
        self, path: str, *, max_model_len: int, trust_remote_code: bool = False, reserved_tokens: int | None = None
    ) -> None:
        """Raises `ModelError` for a folder without a config or processor.

        Args:
            reserved_tokens: of the context for the longest prompt's text and its reply; None: tokens are not looked at.
        """
        self._reserved, self._max_model_len = reserved_tokens, max_model_len
        self._cost = read_vision_cost(model_folder(path, weights=False))
        self._processor = cached_processor(path, trust_remote_code)
        self._longest_s = longest_video_s(read_config(path, trust_remote_code=trust_remote_code), max_model_len)
        self._obstacle = functools.lru_cache(maxsize=4096)(functools.partial(obstacle, self._processor))
        self._measured = functools.lru_cache(maxsize=4096)(
            lambda *shape: measure_tokens(self._processor, black(*shape[:3], duration_s=shape[3]))
        )

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
        if self._reserved is not None:
            needed = self._tokens(num_frames, height, width, duration_s) + self._reserved
            if needed > self._max_model_len:
                raise VideoError(
                    "too_long",
                    f"{name}: {num_frames} frames of {width}x{height} need {needed:,} tokens with the longest prompt and its reply, "
                    f"and model.max_model_len is {self._max_model_len:,}; raise it, take fewer frames, or set video.max_pixels",
                )

    def _tokens(self, num_frames: int, height: int, width: int, duration_s: float) -> int:
        """Vision tokens: by formula, or measured, with few frames where these say that it is far from what there is room for."""
        if self._cost is not None:
            return self._cost.tokens(num_frames, height, width)
        few = min(num_frames, TRIED_FRAMES)
        guess = self._measured(few, height, width, float(few)) * (num_frames + 1) // few
        if num_frames == few or guess < SURE_SHARE * (self._max_model_len - (self._reserved or 0)):
            return guess
        return self._measured(num_frames, height, width, round(duration_s))


def measure_tokens(processor: Any, clip: Clip) -> int:
    """Vision tokens of a clip, counted in what the processor makes of it, with what it writes between frames."""
    return render_prompt(processor, "", clip).length - template_tokens(processor)


def template_tokens(processor: Any) -> int:
    """Tokens of the chat template around a prompt; its one video placeholder becomes the video and does not count."""
    return len(prompt_ids(processor, "")) - 1


def quarantined(decoded: Iterable[Mapping[str, str]], takes: ClipCheck) -> list[dict[str, str]]:
    """Rows of `vidalign.video.decode_child.DecodedVideo` with the clips quarantined that the model does not take."""
    rows = []
    for row in decoded:
        refused: dict[str, str] = {}
        if row["frames_path"] and visual_of(row["video"]).kind != "image":
            (num_frames, height, width, _), duration_s = read_shape(row["frames_path"])
            try:
                takes(without_question(row["video"]), num_frames, height, width, duration_s)
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


def black(num_frames: int, height: int, width: int, *, duration_s: float | None = None) -> Clip:
    """A clip of black frames, spread over so many seconds; by default one a second."""
    duration_s = duration_s or float(num_frames)
    return Clip(
        frames=np.zeros((num_frames, height, width, 3), np.uint8),
        fps=num_frames / duration_s,
        total_num_frames=num_frames,
        duration_s=duration_s,
        indices=tuple(range(num_frames)),
    )
