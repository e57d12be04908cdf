"""From a video file to the frames that a FrameSpec asks for, or a `VideoError` with a quarantine reason.

    path ── probe (probing) ── sampled (timing) ── check (bounds) ── decord | PyAV (readers) ── upright (display) ── resize ── Clip

The probe finds what is wrong with a file before a decoder can hide it: decoders conceal missing frames, hand out garbage
after a cut, and trust an index that promises more than the bytes hold. Frames do not depend on the backend: indices come from the
probe, both backends give the same RGB pixels, and resizing is always Pillow's antialiased bicubic. decord's bundled FFmpeg is old:
what it does not decode exactly (`vidalign.video.exact`), cannot open, fails on, or counts other frames of than the probe is decoded
by PyAV, and what PyAV says is final; `Clip.backend` says which of the two it was. One gap is left: a frame damaged inside an
otherwise whole file and concealed by the decoder is noticed only by PyAV, because decord does not report concealment.

Decoding can hang on hostile files: run `decode` where it can be killed (`vidalign.video.decode_child`).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vidalign.errors import VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import bounds, display, exact, probing, readers
from vidalign.video.clip import Clip
from vidalign.video.hash_index import HashIndex
from vidalign.video.timing import Part, Timing, part_of, sampled


def frame_indices(total: int, fps: float, spec: FrameSpec) -> list[int]:
    """Which frames of a video with a constant frame rate a spec takes, see `vidalign.video.timing.sampled`."""
    return sampled(total, Timing(fps=fps, duration_s=total / fps), spec)


def snapped(indices: Sequence[int], keyframes: np.ndarray) -> list[int]:
    """Each index moved to the nearest keyframe at or before it, if that gives as many different frames as before.

    If the keyframes are too few or too unevenly spread, or the first one comes too late, the indices are returned unchanged: a
    video never gives fewer frames, or one frame in place of two, because of its keyframes.
    """
    places = np.searchsorted(keyframes, indices, side="right") - 1
    if len(keyframes) == 0 or places[0] < 0:
        return list(indices)
    moved = [int(keyframes[place]) for place in places]
    return moved if len(set(moved)) == len(set(indices)) else list(indices)


def content_hash(path: str | os.PathLike[str], index: HashIndex | None = None) -> str:
    """SHA-256 of a file's bytes, in hex. Raises `VideoError` if the file cannot be read."""
    _check_file(path)
    try:
        with open(path, "rb") as file:
            return index.sha256(file) if index else hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _cannot_read(os.fspath(path), error) from error


def decode(
    path: str | os.PathLike[str],
    spec: FrameSpec,
    backend: Backend = DEFAULT_BACKEND,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Clip:
    """Decode the frames of a local file that `spec` asks for, of the whole video or of its part from `start_s` to `end_s`.

    Raises:
        VideoError: with reason missing, unreadable, zero_byte, not_a_video, no_video_stream, truncated, too_few_frames,
            too_long or out_of_bounds.
    """
    name, head = _opened(path)
    return _decode(name, head, lambda: name, spec, backend, (start_s, end_s))


def planned(path: str | os.PathLike[str], spec: FrameSpec, *, start_s: float = 0.0, end_s: float | None = None) -> Clip:
    """The clip that `decode` gives, with black frames, of which nothing is decoded. Raises `VideoError` as `decode` does."""
    name, head = _opened(path)
    with probing.open_whole(name, head, lambda: name) as container:
        probe = probing.probe(name, head, lambda: name, container)
        part, indices = _taken(name, probe, spec, (start_s, end_s))
        size, _ = _checked_size(name, container, len(indices), spec)
    frames = np.zeros((len(indices), *size, 3), np.uint8)  # memory that is never touched is never taken
    return _clip(frames, "pyav", part, indices)


def decode_bytes(
    data: bytes,
    spec: FrameSpec,
    backend: Backend = DEFAULT_BACKEND,
    name: str = "video in memory",
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Clip:
    """Like `decode`, for a video file that is already in memory; `name` is used in messages."""
    if not data:
        raise VideoError("zero_byte", f"{name} is empty (0 bytes)")
    return _decode(name, data[:16], lambda: io.BytesIO(data), spec, backend, (start_s, end_s))


def frame_times_s(path: str | os.PathLike[str], spec: FrameSpec) -> tuple[float, ...]:
    """When the frames that `spec` takes of a local video file are shown, in seconds; nothing is decoded. Raises as `decode` does."""
    name, head = _opened(path)
    with probing.open_whole(name, head, lambda: name) as container:
        probe = probing.probe(name, head, lambda: name, container)
    whole = Part(first=0, count=probe.num_frames, timing=probe.timing)
    indices = _sampled(name, probe, whole, spec)
    return probe.timing.times_s(indices) or tuple(index / probe.timing.fps for index in indices)


def _decode(
    name: str,
    head: bytes,
    source: Callable[[], Any],
    spec: FrameSpec,
    backend: Backend,
    bounds_s: tuple[float, float | None],
) -> Clip:
    with probing.open_whole(name, head, source) as container:
        probe = probing.probe(name, head, source, container)
        part, indices = _taken(name, probe, spec, bounds_s)
        _, aspect = _checked_size(name, container, len(indices), spec)
        frames = None
        if backend == "decord" and (turn := exact.in_decord(name, source, probe)) is not None:
            frames = readers.read_decord(source, indices, probe.num_frames, spec, turn=turn, aspect=aspect)
        used = "pyav" if frames is None else "decord"
        if frames is None:
            frames = readers.read_pyav(name, source, container, indices, probe.times, spec)
    return _clip(frames, used, part, indices)


def _taken(name: str, probe: probing.Probe, spec: FrameSpec, bounds_s: tuple[float, float | None]) -> tuple[Part, list[int]]:
    """The part of a video that is shown, and which of the video's frames are taken."""
    part = Part(first=0, count=probe.num_frames, timing=probe.timing)
    if bounds_s != (0.0, None):
        part = part_of(name, probe.num_frames, probe.timing, *bounds_s)
    return part, [part.first + index for index in _sampled(name, probe, part, spec)]


def _checked_size(name: str, container: Any, num_frames: int, spec: FrameSpec) -> tuple[tuple[int, int], Fraction]:
    """(height, width) of the frames that are kept, if they and the file's are not too large, and its pixels' aspect."""
    stream = probing.video_stream(name, container)
    stored, aspect = (stream.height, stream.width), display.pixel_aspect(stream, spec)
    size = readers.target_size(*display.shown_size(stored, aspect), spec, num_frames)
    bounds.check_size(name, stored, size, num_frames, spec)
    return size, aspect


def _clip(frames: np.ndarray, backend: str, part: Part, indices: Sequence[int]) -> Clip:
    shown = [index - part.first for index in indices]
    return Clip(
        frames=frames,
        fps=part.timing.fps,
        total_num_frames=part.count,
        duration_s=part.timing.duration_s,
        indices=tuple(shown),
        backend=backend,
        times=part.timing.times_s(shown),
    )


def _sampled(name: str, probe: probing.Probe, part: Part, spec: FrameSpec) -> list[int]:
    """Which frames to take, counted from the first one of the part."""
    if part.count < max(1, spec.min_frames):
        whole = "" if part.count == probe.num_frames else " in its clip"
        raise VideoError(
            "too_few_frames",
            f"{name} has {part.count} frames{whole}, but video.min_frames is {spec.min_frames}; "
            "lower video.min_frames or leave the video out",
        )
    bounds.check_duration(name, part.timing, spec)
    indices = sampled(part.count, part.timing, spec)
    if spec.snap_to_keyframes and probe.times is not None:
        keyframes = probe.times.keyframes - part.first
        indices = snapped(indices, keyframes[(keyframes >= 0) & (keyframes < part.count)])
    return indices


def _opened(path: str | os.PathLike[str]) -> tuple[str, bytes]:
    """A local file's name and first bytes. Raises `VideoError` as `decode` does."""
    _check_file(path)
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            return name, file.read(16)
    except OSError as error:
        raise _cannot_read(name, error) from error


def _check_file(path: str | os.PathLike[str]) -> None:
    name = os.fspath(path)
    try:
        status = os.stat(name)
    except OSError as error:
        raise _cannot_read(name, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError("unreadable", f"{name} is a folder; a folder of frames needs 'fps' in its row")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise VideoError("zero_byte", f"{name} is empty (0 bytes)")


def _cannot_read(name: str, error: OSError) -> VideoError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return VideoError("missing", f"no file at {name}")
    return VideoError("unreadable", f"{name} cannot be read: {error.strerror or error}")
