"""The videos that are made for a measurement: files, and clips of noise."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vidalign.video.clip import Clip


def write_video(
    path: pathlib.Path,
    pictures: Iterable[np.ndarray],
    *,
    codec: str,
    fps: int,
    options: Mapping[str, str] | None = None,
) -> pathlib.Path:
    """Encode pictures uint8 [H, W, 3] of one size as they come. The file has its name only once it is whole."""
    import av

    draft = path.with_name("draft-" + path.name)
    with av.open(str(draft), "w") as container:
        stream: Any = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream(codec, rate=fps, options=dict(options or {}))
                stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    draft.rename(path)
    return path


def make_clip(num_frames: int, side: int, seed: int) -> Clip:
    """A square video of noise at two frames a second: every pixel counts for something."""
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, side, side, 3), np.uint8)
    indices = tuple(range(num_frames))
    return Clip(frames=frames, fps=2.0, total_num_frames=num_frames, duration_s=num_frames / 2, indices=indices)
