"""`vidalign.decode`: one call from a video file to a `Clip`."""

from __future__ import annotations

import os
from typing import Any

import pydantic

from vidalign.config.run import VideoConfig
from vidalign.errors import ConfigError
from vidalign.records import FrameChoice
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import decoding, visuals
from vidalign.video.clip import Clip
from vidalign.video.naming import asked_about


def decode(
    path: str | os.PathLike[str],
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int = FrameSpec.max_frames,
    min_frames: int = FrameSpec.min_frames,
    height: int | None = FrameSpec.height,
    width: int | None = FrameSpec.width,
    max_pixels: int | None = FrameSpec.max_pixels,
    total_pixels: int | None = FrameSpec.total_pixels,
    snap_to_keyframes: bool = FrameSpec.snap_to_keyframes,
    square_pixels: bool = FrameSpec.square_pixels,
    hdr_to_sdr: bool = FrameSpec.hdr_to_sdr,
    max_duration_s: float = FrameSpec.max_duration_s,
    max_pixels_decoded: int = FrameSpec.max_pixels_decoded,
    choice: FrameChoice | None = FrameSpec.choice,
    question: str = "",
    backend: Backend = DEFAULT_BACKEND,
) -> Clip:
    """Decode the sampled frames of a local video file: `num_frames` in all, or `fps` for each second of video.

    With `choice` (`vidalign.records.FrameChoice`), those frames that `question` calls for, at most `num_frames`. The other keywords
    are those of `vidalign.types.FrameSpec`; with equal values, the frames are the ones that rollouts, training and the endpoint see.
    Decoding runs in this process without a deadline, so a hostile file can make it hang.

    Returns:
        A `Clip` with frames uint8 [F, H, W, 3] in RGB, indices [F], times_s [F] in seconds, fps and duration_s.

    Raises:
        ConfigError: both or neither of num_frames and fps, or a value out of its range; a question without a choice that reads it, or
            such a choice without a question.
        VideoError: the file cannot be used; `reason` is one of `vidalign.errors.QUARANTINE_REASONS`.
    """
    if (num_frames is None) == (fps is None):
        raise ConfigError(
            f"decode takes exactly one of num_frames and fps, got num_frames={num_frames} and fps={fps}; "
            "give num_frames=8, for example, or fps=2"
        )
    options = {
        "num_frames": num_frames,
        "fps": fps,
        "max_frames": max_frames,
        "min_frames": min_frames,
        "height": height,
        "width": width,
        "max_pixels": max_pixels,
        "total_pixels": total_pixels,
        "snap_to_keyframes": snap_to_keyframes,
        "square_pixels": square_pixels,
        "hdr_to_sdr": hdr_to_sdr,
        "max_duration_s": max_duration_s,
        "max_pixels_decoded": max_pixels_decoded,
        "backend": backend,
        **({} if choice is None else {"choice": choice.to_row()}),
    }
    try:
        config = VideoConfig.model_validate(options)
    except pydantic.ValidationError as error:
        raise ConfigError("decode: " + "; ".join(_explain(item) for item in error.errors())) from error
    needed = choice is not None and choice.needs_question
    if needed != bool(question.strip()):
        raise ConfigError(
            f"decode: a question chooses frames where choice.relevance reads it, got question={question!r} and choice={choice}; give "
            "both, or leave the question out"
        )
    if choice is None:
        return decoding.decode(path, config.frame_spec(), config.backend)
    return visuals.decode(asked_about(os.fspath(path), question), config.frame_spec(), config.backend)


def _explain(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ")
    return f"{item['loc'][0]}={item['input']!r}: {message[:1].lower()}{message[1:]}" if item["loc"] else message
