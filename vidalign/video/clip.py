"""A clip: the sampled frames of one video, and which of its frames they are."""

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
        total_num_frames: frames of the source.
        duration_s: of the source, in seconds; total_num_frames / fps.
        indices: the source frame of each sampled frame, ascending, F of them.
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
        """When each sampled frame is shown, in seconds from the start of the video, F of them.

        For now this is index / fps, which is exact where the frame rate is constant; a variable one is not evened out.
        """
        return tuple(index / self.fps for index in self.indices)

    def metadata(self) -> dict[str, Any]:
        """What vLLM takes beside the frames, and the keyword arguments of transformers' `VideoMetadata`, which has no
        `do_sample_frames`. False means: already sampled, use these frames as they are."""
        return {
            "total_num_frames": self.total_num_frames,
            "fps": self.fps,
            "duration": self.duration_s,
            "frames_indices": list(self.indices),
            "video_backend": self.backend,
            "do_sample_frames": False,
        }
