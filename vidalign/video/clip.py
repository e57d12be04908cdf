"""A clip: the sampled frames of one video, and their positions in it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Sampled frames of one video, with where they were taken from.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB, C-contiguous.
        fps: the source's average frame rate (not the sampling rate).
        total_num_frames: the number of frames of the source.
        duration_s: the source's duration in seconds, total_num_frames / fps.
        indices: the source frame of each of the F sampled frames, ascending.
        backend: the decoder that was used, "pyav" or "decord".
    """

    frames: np.ndarray
    fps: float
    total_num_frames: int
    duration_s: float
    indices: tuple[int, ...]
    backend: str = "pyav"

    def __post_init__(self) -> None:
        assert self.frames.dtype == np.uint8, self.frames.dtype
        assert self.frames.ndim == 4, self.frames.shape
        assert self.frames.shape[3] == 3, self.frames.shape
        assert self.frames.flags.c_contiguous
        assert len(self.indices) == len(self.frames), (len(self.indices), self.frames.shape)

    @property
    def times_s(self) -> tuple[float, ...]:
        """When each of the F sampled frames is shown, in seconds from the start of the video.

        This is index / fps: exact for a constant frame rate, approximate for a variable one.
        """
        return tuple(index / self.fps for index in self.indices)

    def metadata(self) -> dict[str, Any]:
        """What vLLM takes in addition to the frames.

        Except for `do_sample_frames`, these are the keyword arguments of transformers' `VideoMetadata`. `do_sample_frames` False
        means that the frames are already sampled and are used unchanged.
        """
        return {
            "total_num_frames": self.total_num_frames,
            "fps": self.fps,
            "duration": self.duration_s,
            "frames_indices": list(self.indices),
            "video_backend": self.backend,
            "do_sample_frames": False,
        }
