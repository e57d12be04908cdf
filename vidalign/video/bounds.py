"""How long and how large a video may be: what a file claims is input, and 3 KB can claim four hours or a frame of a gigabyte."""

from __future__ import annotations

import numpy as np

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video.timing import Timing

STILL_S = 60.0  # a frame that stands longer carries no more of a video's time than this
SHORT_S = 600.0  # a video up to here may be a few stills
DECODER_FRAMES = 16  # what decoders of today's codecs hold at once


def check_duration(name: str, timing: Timing, spec: FrameSpec) -> None:
    """Raise `VideoError` (too_long) for a video that is longer than allowed, or than its frames make credible."""
    duration = timing.duration_s
    if duration > spec.max_duration_s:
        raise VideoError(
            "too_long",
            f"{name} is {duration:,.0f} s long and video.max_duration_s is {spec.max_duration_s:,g}; "
            "raise video.max_duration_s or leave the video out",
        )
    lengths = timing.frame_lengths_s
    carried = float(np.minimum(lengths, STILL_S).sum()) * (duration / float(lengths.sum()))
    if duration > SHORT_S and carried < duration / 2:
        raise VideoError(
            "too_long",
            f"{name} claims to be {duration:,.0f} s long and its frames carry {carried:,.0f} s of it: one of them stands for "
            f"{lengths.max():,.0f} s, and a frame counts for at most {STILL_S:g} s. Write the video again with more frames",
        )


def check_size(name: str, stored: tuple[int, int], shown: tuple[int, int], num_frames: int, spec: FrameSpec) -> None:
    """Raise `VideoError` (too_long) where frames are too large to be decoded, or too many for their size to be kept.

    `stored`: (height, width) of the frames of the file; `shown`: of the `num_frames` that are kept.
    """
    limit = spec.max_pixels_decoded
    decoding = stored[0] * stored[1] * DECODER_FRAMES
    if decoding > limit:
        raise VideoError(
            "too_long",
            f"{name} has frames of {stored[1]}x{stored[0]}, of which a decoder holds {DECODER_FRAMES}: {decoding:,} pixels, and "
            f"video.max_pixels_decoded is {limit:,}; raise it, or scale the video down",
        )
    kept = shown[0] * shown[1] * num_frames
    if kept > limit:
        raise VideoError(
            "too_long",
            f"{name} has {num_frames} frames of {shown[1]}x{shown[0]} to be kept: {kept:,} pixels, and video.max_pixels_decoded is "
            f"{limit:,}; set video.max_pixels, take fewer frames, or raise it",
        )
