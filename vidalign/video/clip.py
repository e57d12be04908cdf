"""A clip: the sampled frames of one video, and their positions in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

MS_PER_S = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Sampled frames of one video, with where they were taken from. Of a part of a video, the part counts as the whole video.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB, C-contiguous.
        fps: the source's average frame rate (not the sampling rate).
        total_num_frames: frames of the source.
        duration_s: of the source, in seconds, from its first frame; total_num_frames / fps.
        indices: the source frame of each sampled frame, ascending, F of them.
        backend: the decoder that was used, "pyav" or "decord".
        times: when each sampled frame is shown, F of them, of a video with a variable frame rate; None means index / fps.
    """

    frames: np.ndarray
    fps: float
    total_num_frames: int
    duration_s: float
    indices: tuple[int, ...]
    backend: str = "pyav"
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        assert self.frames.dtype == np.uint8, self.frames.dtype
        assert self.frames.ndim == 4, self.frames.shape
        assert self.frames.shape[3] == 3, self.frames.shape
        assert self.frames.flags.c_contiguous
        assert len(self.indices) == len(self.frames), (len(self.indices), self.frames.shape)
        assert self.times is None or len(self.times) == len(self.frames), (self.times, self.frames.shape)

    @property
    def times_s(self) -> tuple[float, ...]:
        """When each sampled frame is shown, in seconds from the first frame of the video, F of them."""
        return self.times or tuple(index / self.fps for index in self.indices)

    def taken(self, positions: Sequence[int]) -> dict[str, Any]:
        """The fields of a clip of the frames at these positions that say where they were taken from."""
        return {
            "indices": tuple(self.indices[position] for position in positions),
            "times": None if self.times is None else tuple(self.times[position] for position in positions),
        }

    def metadata(self) -> dict[str, Any]:
        """What vLLM takes beside the frames, and the keyword arguments of transformers' `VideoMetadata`, which has no
        `do_sample_frames`. False means: already sampled, use these frames as they are.

        Models read a frame's time as frames_indices / fps. With a variable frame rate no source frame's number says that, so
        frames are then counted in milliseconds.
        """
        fps, total, indices = self.fps, self.total_num_frames, list(self.indices)
        if self.times is not None:
            fps, total = MS_PER_S, round(self.duration_s * MS_PER_S)
            indices = [round(time * MS_PER_S) for time in self.times]
        return {
            "total_num_frames": total,
            "fps": fps,
            "duration": self.duration_s,
            "frames_indices": indices,
            "video_backend": self.backend,
            "do_sample_frames": False,
        }
