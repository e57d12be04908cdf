"""From the packets of a video stream to its frames: in which order, when, and from where on they can be decoded.

Packets come in the order of decoding. What a container stores of their times differs: most store when a frame is shown (pts), some
only the order of decoding (dts), and pieces that were joined without care start their clocks again.
"""

from __future__ import annotations

import dataclasses

import numpy as np

ORDER_ONLY = {"avi", "asf", "rm"}  # containers without pts; FFmpeg makes some up, which B-frames put in the wrong order
RESTARTING = {"mpegts", "mpeg"}  # broadcast formats, whose clock may be set anew at any time
MAX_STEP_S = 10.0  # in them, a longer step is such a moment; FFmpeg's command has the same bound


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrameTimes:
    """When the frames of a stream are shown, in order; frame i is the one with `pts[i]`.

    Attributes:
        pts: int64 [N], in the stream's time base, ascending and all different.
        keyframes: int64 [K], the frames at which decoding can start, ascending.
    """

    pts: np.ndarray
    keyframes: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """What packets say about the frames of their stream; times are in its time base.

    Attributes:
        shown: int64 [N], when each frame is shown, ascending; None where the packets do not say it.
        last: for how long the last frame says that it is shown.
        times: what seeking goes by; None where it cannot be relied upon.
        closed: whether no frame is shown before the keyframe that is decoded before it. With open groups of pictures such frames
            need an earlier keyframe as well.
    """

    shown: np.ndarray | None
    last: int = 0
    times: FrameTimes | None = None
    closed: bool = False


@dataclasses.dataclass(frozen=True)
class Packets:
    """The packets of one stream in the order of decoding. Times are None where there are none."""

    pts: list[int | None] = dataclasses.field(default_factory=list)
    dts: list[int | None] = dataclasses.field(default_factory=list)
    durations: list[int] = dataclasses.field(default_factory=list)
    keyframes: list[bool] = dataclasses.field(default_factory=list)

    def frames(self, container: str, *, reorders: bool, max_step: float) -> Frames:
        """`container`: FFmpeg's name of its format. `reorders`: whether the codec may show frames in another order than that of
        decoding. `max_step`: `MAX_STEP_S` in the stream's time base."""
        formats, num = set(container.split(",")), len(self.pts)
        durations, keyframes = np.array(self.durations, np.int64), np.array(self.keyframes)
        dts = None if not num or None in self.dts else np.array(self.dts, np.int64)
        if dts is not None and (None in self.pts or (formats & ORDER_ONLY and (reorders or self.pts != self.dts))):
            # Xvid's encoder leaves a gap after the first frame, as long as its delay; the times made up do not have it.
            made_up = np.array([] if None in self.pts else self.pts, np.int64)
            times = made_up if is_even(made_up) and not is_even(dts) else _continuous(dts, dts, durations, float("inf"))
            return Frames(shown=np.sort(times), last=int(durations[np.argmax(times)]))
        if not num or None in self.pts:
            return Frames(shown=None)
        pts = np.array(self.pts, np.int64)
        if dts is not None:
            joined = _continuous(pts, dts, durations, max_step if formats & RESTARTING else float("inf"))
            if joined is not pts:
                return Frames(shown=np.sort(joined), last=int(durations[np.argmax(joined)]))
        joined = _begun_again(pts, durations, keyframes)
        if joined is not pts:
            return Frames(shown=np.sort(joined), last=int(durations[np.argmax(joined)]))
        return frames_of(pts, durations, keyframes)


def frames_of(pts: np.ndarray, durations: np.ndarray, keyframes: np.ndarray) -> Frames:
    """`Frames` of arrays [N] in the order of decoding, whose times are to be relied upon."""
    order = np.argsort(pts, kind="stable")
    shown = pts[order]
    seekable = not (np.diff(shown) == 0).any()  # else two frames are shown at once
    times = FrameTimes(pts=shown, keyframes=np.flatnonzero(keyframes[order])) if seekable else None
    earliest = np.minimum.accumulate(pts[::-1])[::-1]  # of this frame and all that are decoded after it
    closed = bool((earliest == pts)[keyframes].all())
    return Frames(shown=shown, last=int(durations[order[-1]]), times=times, closed=closed)


def is_even(times: np.ndarray) -> bool:
    """Whether frames at these times, in any order, are all of one length."""
    steps = np.diff(np.sort(times))
    return len(steps) > 0 and steps[0] > 0 and bool((steps == steps[0]).all())


def _continuous(times: np.ndarray, dts: np.ndarray, durations: np.ndarray, max_step: float) -> np.ndarray:
    """`times` with a clock that never starts again: the same array where it does not, by dts that go back or leap."""
    steps = np.diff(dts)
    breaks = (steps < 0) | (steps > max_step)
    if not breaks.any() or breaks.mean() > 0.5:  # of a few stills, every step is long
        return times
    usual = int(np.median(steps[~breaks]))
    lengths = np.where(durations[:-1] > 0, durations[:-1], usual)
    leaps = np.where(breaks, steps - lengths, 0)
    shifts = np.concatenate([[0], np.cumsum(leaps)])
    # Where frames are reordered, those shown after a break may be decoded before it: the next leap brings them near their dts.
    following = np.append(leaps[breaks], 0)[np.searchsorted(np.flatnonzero(breaks), np.arange(len(times)))]
    ahead = times - dts
    return times - shifts - np.where(np.abs(ahead - following) < np.abs(ahead), following, 0)


def _begun_again(pts: np.ndarray, durations: np.ndarray, keyframes: np.ndarray) -> np.ndarray:
    """`pts` of files that were joined end to end, each with a clock from the same start: the same array where there is but one."""
    earliest = np.minimum.accumulate(pts)
    starts = [index for index in np.flatnonzero(keyframes)[1:] if pts[index] <= earliest[index - 1]]
    if not starts:
        return pts
    joined = pts.copy()
    for start in starts:
        before = joined[:start]
        steps = np.diff(np.sort(before))
        usual = int(durations[start - 1]) or (int(np.median(steps)) if len(steps) else 1)
        joined[start:] += before.max() + max(usual, 1) - joined[start]
    return joined
