"""From a video file to the frames that a FrameSpec asks for, or a `VideoError` with a quarantine reason.

    path ── probe (PyAV reads every packet, decodes none) ── frame_indices ── decord | PyAV ── resize ── Clip

The probe finds what is wrong with a file before a decoder can hide it: decoders conceal missing frames, hand out garbage
after a cut, and promise an index that the bytes cannot keep. Frames do not depend on the backend: indices come from the
probe, both backends give the same RGB pixels (to the bit for H.264 and VP9; MPEG-4 part 2 leaves the last bit of a pixel to
the decoder), and resizing is always Pillow's antialiased bicubic. decord seeks and is fast on long videos; PyAV decodes from
the first frame to the last wanted one. decord's bundled FFmpeg is old, so where it cannot open a video, fails on it, or
counts other frames than the probe, PyAV decodes that video and its verdict stands; `Clip.backend` says which of the two it
was. One hole is left: a frame damaged inside an otherwise whole file and concealed by the decoder is noticed only by PyAV,
because decord does not report concealment.

Decoding can hang on hostile files: run `decode` where it can be killed (`vidalign.decode_child`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import av
import av.error
import numpy as np
import PIL.Image
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vidalign.errors import VideoError
from vidalign.types import FrameSpec

Backend = Literal["decord", "pyav"]
CHUNK_FRAMES = 8  # full-size frames held at once while resizing

# FFmpeg also "opens" playlists and scripts (hls, dash, concat), which make it fetch other files, and renders plain text as a
# video (tty). Only containers that carry their own frames are let in; the audio ones are here to be named as such.
CONTAINERS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vc1,webm,wtv,aac,ac3,aiff,amr,ape,caf,eac3,flac,mp3,wav"
)
_MAGIC = {4: b"ftyp", 0: b"\x1aE\xdf\xa3"}  # MP4/MOV and Matroska/WebM: recognisable even when cut


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """Sampled frames of one video, with where they were taken from.

    Attributes:
        frames: uint8 [F, H, W, 3], RGB, C-contiguous.
        fps: the source's average frame rate (not the sampling rate).
        total_num_frames: frames of the source.
        duration: of the source, in seconds; total_num_frames / fps.
        indices: the source frame of each sampled frame, ascending, F of them.
        backend: the decoder that was used, "decord" or "pyav".
    """

    frames: np.ndarray
    fps: float
    total_num_frames: int
    duration: float
    indices: tuple[int, ...]
    backend: str = "pyav"

    def __post_init__(self) -> None:
        assert self.frames.dtype == np.uint8, self.frames.dtype
        assert self.frames.ndim == 4, self.frames.shape
        assert self.frames.shape[3] == 3, self.frames.shape
        assert self.frames.flags.c_contiguous
        assert len(self.indices) == len(self.frames), (len(self.indices), self.frames.shape)

    def metadata(self) -> dict[str, Any]:
        """What vLLM takes beside the frames, and the keyword arguments of transformers' `VideoMetadata`, which has no
        `do_sample_frames`. False means: already sampled, use these frames as they are."""
        return {
            "total_num_frames": self.total_num_frames,
            "fps": self.fps,
            "duration": self.duration,
            "frames_indices": list(self.indices),
            "video_backend": self.backend,
            "do_sample_frames": False,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What a container holds, found by reading all its packets."""

    num_frames: int
    fps: float


def frame_indices(total: int, fps: float, spec: FrameSpec) -> list[int]:
    """Which source frames to take: n of them, each at the middle of one of n equal parts of the video, ascending.

    n is `spec.num_frames` (frames repeat where the video has fewer), or else as many as give `spec.fps` frames per second
    of video: at most the video's own frames, at most `spec.max_frames` (then spread over the whole video), and at least
    `spec.min_frames`. Indices count frames: a variable frame rate is not evened out.
    """
    if spec.num_frames is not None:
        count = spec.num_frames
    else:
        assert spec.fps is not None
        count = max(min(round(total / fps * spec.fps), total, spec.max_frames), min(spec.min_frames, total), 1)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def target_size(height: int, width: int, spec: FrameSpec) -> tuple[int, int]:
    """(height, width) after resizing: exact, or the same aspect ratio within `max_pixels`, never enlarged, or unchanged."""
    if spec.height is not None and spec.width is not None:
        return spec.height, spec.width
    if spec.max_pixels is None or height * width <= spec.max_pixels:
        return height, width
    scale = math.sqrt(spec.max_pixels / (height * width))
    # A side clipped up to one pixel must not push the other one past the bound.
    new_height = min(max(1, math.floor(height * scale)), spec.max_pixels)
    return new_height, min(max(1, math.floor(width * scale)), spec.max_pixels // new_height)


def content_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hex. Raises `VideoError` where the file cannot be read."""
    _check_file(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _cannot_read(os.fspath(path), error) from error


def decode(path: str | os.PathLike[str], spec: FrameSpec, backend: Backend = "decord") -> Clip:
    """Decode the frames of a local file that `spec` asks for.

    Raises:
        VideoError: with reason missing, unreadable, zero_byte, not_a_video, no_video_stream, truncated or too_few_frames.
    """
    _check_file(path)
    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise _cannot_read(name, error) from error
    return _decode(name, head, lambda: name, spec, backend)


def decode_bytes(data: bytes, spec: FrameSpec, backend: Backend = "decord", name: str = "video in memory") -> Clip:
    """Like `decode`, for a video file that is already in memory; `name` is used in messages."""
    if not data:
        raise VideoError("zero_byte", f"{name} is empty (0 bytes)")
    return _decode(name, data[:16], lambda: io.BytesIO(data), spec, backend)


def _decode(name: str, head: bytes, source: Callable[[], Any], spec: FrameSpec, backend: Backend) -> Clip:
    probe = _probe(name, head, source)
    if probe.num_frames < max(1, spec.min_frames):
        raise VideoError(
            "too_few_frames",
            f"{name} has {probe.num_frames} frames and video.min_frames is {spec.min_frames}; "
            "lower video.min_frames or leave the video out",
        )
    indices = frame_indices(probe.num_frames, probe.fps, spec)
    wanted = sorted(set(indices))
    pixels = _read_decord(source, wanted, probe.num_frames, spec) if backend == "decord" else None
    used = "pyav" if pixels is None else "decord"
    if pixels is None:
        pixels = _read_pyav(name, source, wanted, spec)
    frames = pixels if wanted == indices else pixels[np.searchsorted(wanted, indices)]
    return Clip(
        frames=np.ascontiguousarray(frames),
        fps=probe.fps,
        total_num_frames=probe.num_frames,
        duration=probe.num_frames / probe.fps,
        indices=tuple(indices),
        backend=used,
    )


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


def _open(source: Callable[[], Any]) -> InputContainer:
    container = av.open(source(), "r", container_options={"format_whitelist": CONTAINERS})
    assert isinstance(container, InputContainer)
    return container


def _video_stream(name: str, container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or Disposition.attached_pic in stream.disposition:
        kinds = ", ".join(sorted({item.type for item in container.streams})) or "none"
        raise VideoError("no_video_stream", f"{name} has no video stream (streams: {kinds})")
    return stream


def _where_cut(source: Any) -> str:
    """Where an MP4 or MOV file (a path, or an open binary file) ends too early: "index", "frames", or "" where it does not.

    Its boxes say how long they are. FFmpeg goes by what is left, and takes a file cut by a few frames for a shorter video.
    """
    with source if hasattr(source, "read") else open(source, "rb") as file:
        total = file.seek(0, os.SEEK_END)
        start, has_index = 0, False
        while start + 8 <= total:
            file.seek(start)
            header = file.read(16)
            size, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if size == 1:  # a 64-bit size follows the type
                size = int.from_bytes(header[8:16], "big")
            elif size == 0:  # to the end of the file
                size = total - start
            if size < 8:
                return ""
            has_index |= kind == b"moov" and start + size <= total
            start += size
            if start > total and kind in (b"moov", b"mdat"):
                return "frames" if has_index else "index"
        return ""


def _probe(name: str, head: bytes, source: Callable[[], Any]) -> Probe:
    """Read every packet and compare what is there with what the container's header promises."""
    recognised = any(head[at:].startswith(magic) for at, magic in _MAGIC.items())
    no_index = VideoError("truncated", f"{name} begins like a video but its index is missing or cut off")
    cut = _where_cut(source()) if head[4:].startswith(b"ftyp") else ""
    if cut:
        raise no_index if cut == "index" else VideoError("truncated", f"{name} is cut: it ends inside of its frames")
    try:
        container = _open(source)
    except (av.error.FFmpegError, ValueError) as error:
        if recognised:
            raise no_index from error
        raise VideoError("not_a_video", f"{name} is not a video in any known container") from error
    with container:
        if recognised and all(item.type not in ("video", "audio") for item in container.streams):
            raise no_index  # streams announced, and cut off before their description
        stream = _video_stream(name, container)
        num_frames, num_corrupt = 0, 0
        ends: dict = {}
        try:
            for packet in container.demux():
                if not packet.size:
                    continue
                time = packet.pts if packet.pts is not None else packet.dts
                if time is not None and packet.time_base is not None:
                    end = float((time + (packet.duration or 0)) * packet.time_base)
                    ends[packet.stream_index] = max(end, ends.get(packet.stream_index, end))
                if packet.stream_index == stream.index:
                    num_frames += not packet.is_discard
                    num_corrupt += packet.is_corrupt
        except av.error.FFmpegError as error:
            raise VideoError("truncated", f"{name} cannot be read beyond frame {num_frames}: {error.strerror}") from error
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError("not_a_video", f"{name} has a video stream without a frame rate")
        fps = float(rate)
        _check_whole(name, container, stream, num_frames, num_corrupt, ends, fps)
        return Probe(num_frames=num_frames, fps=fps)


def _check_whole(
    name: str,
    container: InputContainer,
    stream: VideoStream,
    num_frames: int,
    num_corrupt: int,
    ends: dict[int, float],
    fps: float,
) -> None:
    """Raise where the packets end before the header says they do. `ends`: last moment of each stream, in seconds.

    The MP4 and AVI headers promise a number of frames. It alone proves nothing (an edit list hides frames, an AVI skips
    repeated ones), so the time that is missing must agree. Matroska promises a duration, of its longest stream. MPEG-TS and
    raw streams promise nothing: one that was cut between two frames is a shorter video.
    """
    if num_corrupt:
        raise VideoError("truncated", f"{name} is cut or damaged: {num_corrupt} of its {num_frames} frames are incomplete")
    if stream.frames and "avi" in container.format.name:
        promised, end = stream.frames / fps, ends.get(stream.index, 0.0)
    elif stream.duration is not None and stream.time_base is not None:
        promised, end = float(((stream.start_time or 0) + stream.duration) * stream.time_base), ends.get(stream.index, 0.0)
    elif container.duration is not None:
        promised, end = ((container.start_time or 0) + container.duration) / av.time_base, max(ends.values(), default=0.0)
    else:
        return
    short = promised - end
    if (not stream.frames or num_frames < stream.frames) and short > max(2 / fps, 0.01 * promised, 0.1):
        raise VideoError(
            "truncated", f"{name} is cut: its header promises {promised:.2f} s and its frames end at {max(end, 0):.2f} s"
        )


def _read_decord(source: Callable[[], Any], wanted: Sequence[int], total: int, spec: FrameSpec) -> np.ndarray | None:
    """uint8 [len(wanted), H, W, 3], or None where decord cannot be trusted with this video."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(source(), ctx=decord.cpu(0), num_threads=1, fault_tol=1)
        if len(reader) != total:
            return None
        chunks = (wanted[at : at + CHUNK_FRAMES] for at in range(0, len(wanted), CHUNK_FRAMES))
        return _resized((frame for chunk in chunks for frame in reader.get_batch(chunk).asnumpy()), len(wanted), spec)
    except (decord.DECORDError, RuntimeError, IndexError):
        return None  # PyAV decodes it, or says what is wrong with it


def _read_pyav(name: str, source: Callable[[], Any], wanted: Sequence[int], spec: FrameSpec) -> np.ndarray:
    with _open(source) as container:
        stream = _video_stream(name, container)
        stream.codec_context.thread_count = 1
        return _resized(_pyav_frames(name, container, stream, wanted), len(wanted), spec)


def _pyav_frames(name: str, container: InputContainer, stream: VideoStream, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    remaining = iter(wanted)
    target, number = next(remaining), -1
    try:
        for number, frame in enumerate(container.decode(stream)):
            if number != target:
                continue
            if frame.is_corrupt:
                raise VideoError("truncated", f"{name} is damaged: frame {number} cannot be decoded whole")
            # A rotation tag means the frames are stored lying down; decord turns them upright as well.
            yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90 % 4)
            following = next(remaining, None)
            if following is None:
                return
            target = following
    except av.error.FFmpegError as error:
        raise VideoError("truncated", f"{name} cannot be decoded beyond frame {number}: {error.strerror}") from error
    raise VideoError("truncated", f"{name} ends after {number + 1} decodable frames, before frame {target} of its index")


def _resized(frames: Iterator[np.ndarray], count: int, spec: FrameSpec) -> np.ndarray:
    """Resize one frame after the other into one array, so that full-size frames never add up."""
    out = None
    for position, frame in enumerate(frames):
        height, width = target_size(frame.shape[0], frame.shape[1], spec)
        if out is None:
            out = np.empty((count, height, width, 3), np.uint8)
        if frame.shape[:2] != (height, width):
            image = PIL.Image.fromarray(np.ascontiguousarray(frame))
            frame = np.asarray(image.resize((width, height), PIL.Image.Resampling.BICUBIC))
        out[position] = frame
    assert out is not None, count
    return out
