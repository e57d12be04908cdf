"""When the frames of a video are shown, which of them a FrameSpec takes, and how long the video is.

    presentation times ── timing ──┬── even: frame i from i / fps, sampled by number, so that rounded times change nothing
                                   └── variable: the frame on screen at each of the asked times

A header's frame rate is believed as long as every frame is shown within half a frame of where that rate puts it.
"""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np

from vidalign.errors import ConfigError, VideoError
from vidalign.types import FrameSpec

END_SLACK_S = 1.0  # by how much a clip may end after its video: annotations are rounded
MAX_LAST_S = 60.0  # for how long the last frame may claim to be shown
COPIED_LAST_S = 1.0  # up to here it is shown as long as the frame before it; few containers say it
ROUNDING_S = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Timing:
    """The clock of one video, counted from its first frame.

    Attributes:
        fps: average frame rate.
        duration_s: until the end of the last frame, in seconds.
        starts_s: float64 [N], when each frame is shown, ascending; None where frame i is shown from i / fps.
    """

    fps: float
    duration_s: float
    starts_s: np.ndarray | None = None

    @property
    def frame_lengths_s(self) -> np.ndarray:
        """For how long each frame is shown, in seconds; one entry for all where they are equal."""
        return np.array([1 / self.fps]) if self.starts_s is None else np.diff(self.starts_s, append=self.duration_s)

    def times_s(self, indices: list[int]) -> tuple[float, ...] | None:
        """When these frames are shown; None where that is index / fps."""
        return None if self.starts_s is None else tuple(self.starts_s[indices].tolist())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The frames of a video that are on screen in a part of it: `count` of them from number `first`, and their own clock.

    The clock counts from the start of the part. At a constant frame rate that is its first frame, which may have come on screen less
    than one frame before.
    """

    first: int
    count: int
    timing: Timing


def part_of(name: str, total: int, timing: Timing, start_s: float, end_s: float | None) -> Part:
    """The part of a video of `total` frames from `start_s` to `end_s`, or to its end. An end of up to END_SLACK_S too late is the end.

    Raises:
        VideoError: with reason out_of_bounds.
    """
    duration = timing.duration_s
    wrong = f"begins at {start_s:g} s" if start_s >= duration - ROUNDING_S else ""
    if end_s is not None and end_s > duration + END_SLACK_S:
        wrong = wrong or f"ends at {end_s:g} s"
    if wrong:
        raise VideoError(
            "out_of_bounds",
            f"{name} is {duration:,.2f} s long, and its clip {wrong}; correct the clip, or leave the row out",
        )
    end = duration if end_s is None else min(end_s, duration)
    if timing.starts_s is None:
        first = math.floor((start_s + ROUNDING_S) * timing.fps)
        count = max(1, math.ceil((end - ROUNDING_S) * timing.fps) - first)
        count = min(count, total - first)
        return Part(first=first, count=count, timing=Timing(fps=timing.fps, duration_s=count / timing.fps))
    first = int(np.searchsorted(timing.starts_s, start_s + ROUNDING_S, side="right")) - 1
    count = max(1, int(np.searchsorted(timing.starts_s, end - ROUNDING_S, side="left")) - first)
    starts = np.maximum(timing.starts_s[first : first + count] - start_s, 0.0)
    length = end - start_s
    return Part(first=first, count=count, timing=Timing(fps=count / length, duration_s=length, starts_s=starts))


def timing(ticks: np.ndarray, time_base: Fraction, header_fps: float, last: int) -> Timing:
    """The timing of frames that are shown at `ticks` int64 [N], ascending; `last`: for how long the last one says it is shown.

    Both are in units of `time_base` seconds.
    """
    count = len(ticks)
    starts = (ticks - ticks[0]) * float(time_base)
    length = int(ticks[-1] - ticks[0]) * time_base
    if not length or _is_even(starts, header_fps):
        return Timing(fps=header_fps, duration_s=count / header_fps)
    fps = float((count - 1) / length)
    if _is_even(starts, fps) and fps * COPIED_LAST_S >= 1:
        return Timing(fps=fps, duration_s=count / fps)
    copied = min(float(starts[-1] - starts[-2]), COPIED_LAST_S)
    duration = float(starts[-1]) + max(copied, min(last * float(time_base), MAX_LAST_S))
    return Timing(fps=count / duration, duration_s=duration, starts_s=starts)


def _is_even(starts: np.ndarray, fps: float) -> bool:
    return bool(np.abs(starts * fps - np.arange(len(starts))).max() <= 0.5)


def sampled(total: int, timing: Timing, spec: FrameSpec) -> list[int]:
    """Which source frames to take, ascending: n of them, each shown in the middle of one of n equal parts of the video.

    n is `spec.num_frames` (frames repeat where the video has fewer), or else as many as give `spec.fps` frames per second
    of video: at most the video's own frames, at most `spec.max_frames` (then spread over the whole video), and at least
    `spec.min_frames`. With a variable frame rate a frame that is shown for long may be taken several times.

    Raises:
        ConfigError: frames are chosen by a question (`vidalign.video.visuals.chosen_frames`), which is not known here.
    """
    if spec.choice is not None:
        raise ConfigError(
            "video.choice.kind=relevance chooses frames by the question, and this asks which are shown without one (as subtitles of "
            "the frames do); set video.choice.kind to uniform, or leave that out"
        )
    if spec.num_frames is not None:
        count = spec.num_frames
    else:
        assert spec.fps is not None
        count = max(min(round(timing.duration_s * spec.fps), total, spec.max_frames), min(spec.min_frames, total), 1)
    if timing.starts_s is None:
        return [(2 * i + 1) * total // (2 * count) for i in range(count)]
    asked = (2 * np.arange(count) + 1) * timing.duration_s / (2 * count)
    return (np.searchsorted(timing.starts_s, asked + ROUNDING_S, side="right") - 1).tolist()
