"""From a video file to the frames that a FrameSpec asks for, or a `VideoError` with a quarantine reason.

    path ── probe (probing) ── sampled (timing) ── check (bounds) ── decord | PyAV (readers) ── upright (display) ── resize ── Clip

The probe finds what is wrong with a file before a decoder can hide it: decoders conceal missing frames, hand out garbage
after a cut, and trust an index that promises more than the bytes hold. Frames do not depend on the backend: indices come from the
probe, both backends give the same RGB pixels (to the bit for H.264 and VP9; MPEG-4 part 2 leaves the last bit of a pixel to
the decoder), and resizing is always Pillow's antialiased bicubic. decord's bundled FFmpeg is old, so where it cannot open a
video, fails on it, counts other frames than the probe, or is known to be wrong, PyAV decodes that video, and what PyAV says is
final; `Clip.backend` says which of the two it was. One gap is left: a frame damaged inside an otherwise whole file and concealed
by the decoder is noticed only by PyAV, because decord does not report concealment.

Decoding can hang on hostile files: run `decode` where it can be killed (`vidalign.video.decode_child`).
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vidalign.errors import VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import bounds, probing, readers
from vidalign.video.clip import Clip
from vidalign.video.hash_index import HashIndex
from vidalign.video.timing import Timing, sampled


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


def decode(path: str | os.PathLike[str], spec: FrameSpec, backend: Backend = DEFAULT_BACKEND) -> Clip:
    """Decode the frames of a local file that `spec` asks for.

    Raises:
        VideoError: with reason missing, unreadable, zero_byte, not_a_video, no_video_stream, truncated, too_few_frames or
            too_long.
    """
    _check_file(path)
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise _cannot_read(name, error) from error
    return _decode(name, head, lambda: name, spec, backend)


def planned(path: str | os.PathLike[str], spec: FrameSpec) -> Clip:
    """The clip that `decode` gives, with black frames, of which nothing is decoded. Raises `VideoError` as `decode` does."""
    _check_file(path)
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise _cannot_read(name, error) from error
    with probing.open_whole(name, head, lambda: name) as container:
        probe = probing.probe(name, head, lambda: name, container)
        indices = _sampled(name, probe, spec)
        stream = probing.video_stream(name, container)
        size = readers.target_size(stream.height, stream.width, spec)
        bounds.check_size(name, (stream.height, stream.width), size, len(indices), spec)
    return Clip(
        frames=np.zeros((len(indices), *size, 3), np.uint8),  # memory that is never touched is never taken
        fps=probe.fps,
        total_num_frames=probe.num_frames,
        duration_s=probe.timing.duration_s,
        indices=tuple(indices),
        times=probe.timing.times_s(indices),
    )


def decode_bytes(data: bytes, spec: FrameSpec, backend: Backend = DEFAULT_BACKEND, name: str = "video in memory") -> Clip:
    """Like `decode`, for a video file that is already in memory; `name` is used in messages."""
    if not data:
        raise VideoError("zero_byte", f"{name} is empty (0 bytes)")
    return _decode(name, data[:16], lambda: io.BytesIO(data), spec, backend)


def _decode(name: str, head: bytes, source: Callable[[], Any], spec: FrameSpec, backend: Backend) -> Clip:
    with probing.open_whole(name, head, source) as container:
        probe = probing.probe(name, head, source, container)
        indices = _sampled(name, probe, spec)
        stream = probing.video_stream(name, container)
        size = stream.height, stream.width
        bounds.check_size(name, size, readers.target_size(*size, spec), len(indices), spec)
        frames = None
        if backend == "decord" and readers.is_exact_in_decord(name, source, probe):
            frames = readers.read_decord(source, indices, probe.num_frames, spec)
        used = "pyav" if frames is None else "decord"
        if frames is None:
            frames = readers.read_pyav(name, source, container, indices, probe.times, spec)
    return Clip(
        frames=frames,
        fps=probe.fps,
        total_num_frames=probe.num_frames,
        duration_s=probe.timing.duration_s,
        indices=tuple(indices),
        backend=used,
        times=probe.timing.times_s(indices),
    )


def _sampled(name: str, probe: probing.Probe, spec: FrameSpec) -> list[int]:
    if probe.num_frames < max(1, spec.min_frames):
        raise VideoError(
            "too_few_frames",
            f"{name} has {probe.num_frames} frames, but video.min_frames is {spec.min_frames}; "
            "lower video.min_frames or leave the video out",
        )
    bounds.check_duration(name, probe.timing, spec)
    indices = sampled(probe.num_frames, probe.timing, spec)
    if spec.snap_to_keyframes and probe.times is not None:
        indices = snapped(indices, probe.times.keyframes)
    return indices


def _check_file(path: str | os.PathLike[str]) -> None:
    name = os.fspath(path)
    try:
        status = os.stat(name)
    except OSError as error:
        raise _cannot_read(name, error) from error
    if stat.S_ISDIR(status.st_mode):
        raise VideoError("unreadable", f"{name} is a folder; a video must be a file")
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        raise VideoError("zero_byte", f"{name} is empty (0 bytes)")


def _cannot_read(name: str, error: OSError) -> VideoError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return VideoError("missing", f"no file at {name}")
    return VideoError("unreadable", f"{name} cannot be read: {error.strerror or error}")
