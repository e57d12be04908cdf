"""The backends: they read the wanted frames of a video and resize them one by one, so that full-size frames never pile up.

decord   None where it fails, and where decord2 is installed under its import name (see `is_trusted`). It is asked for videos that
         it decodes exactly only (`vidalign.video.exact`).
pyav     seeks to the keyframe before each wanted frame, and decodes from there only what the wanted ones refer to. Frames are
         told apart by their presentation times. Where a time is missing, a seek lands elsewhere, or anything unexpected comes
         out, it starts again and decodes the whole video in order, and what it finds then is final.

Frames come out as players show them: turned and mirrored by the display matrix, with square pixels, and of one size, that of the
video's first frame.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import av
import av.error
import numpy as np
import PIL.Image
from av.container import InputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video import bounds
from vidalign.video.display import Orientation, orientation, pixel_aspect, shown_size, size_of, upright
from vidalign.video.packets import FrameTimes
from vidalign.video.probing import open_container, video_stream

Picture: TypeAlias = tuple[np.ndarray, tuple[int, int]]  # RGB uint8 [H, W, 3], and the (height, width) of its video as shown

CHUNK_FRAMES = 8  # full-size frames that decord holds at once


class NotAsExpectedError(Exception):
    """Seeking does not lead to the frames that the index promises."""


def target_size(height: int, width: int, spec: FrameSpec, num_frames: int = 1) -> tuple[int, int]:
    """(height, width) after resizing: as given, or the same aspect ratio within the bounds (never enlarged), or unchanged.

    The bounds: `max_pixels`, and an even share of `total_pixels` for each of `num_frames`.
    """
    if spec.height is not None and spec.width is not None:
        return spec.height, spec.width
    share = None if spec.total_pixels is None else max(1, spec.total_pixels // num_frames)
    most = min((bound for bound in (spec.max_pixels, share) if bound is not None), default=height * width)
    if height * width <= most:
        return height, width
    scale = math.sqrt(most / (height * width))
    # A side clipped up to one pixel must not push the other one past the bound.
    new_height = min(max(1, math.floor(height * scale)), most)
    return new_height, min(max(1, math.floor(width * scale)), most // new_height)


def read_decord(
    source: Callable[[], Any], indices: Sequence[int], total: int, spec: FrameSpec, *, turn: Orientation, aspect: Fraction
) -> np.ndarray | None:
    """Read frames with decord: uint8 [len(indices), H, W, 3], or None if decord fails. `aspect`: of the pixels that are stored."""
    import decord
    from decord._ffi.base import DECORDLimitReachedError

    if not is_trusted(decord.__version__):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(source(), ctx=decord.cpu(0), num_threads=1, fault_tol=1)
        if len(reader) != total:
            return None
        wanted = list(dict.fromkeys(indices))
        chunks = (wanted[at : at + CHUNK_FRAMES] for at in range(0, len(wanted), CHUNK_FRAMES))
        upright_aspect = 1 / aspect if turn.exchanged else aspect
        frames = (frame for chunk in chunks for frame in reader.get_batch(chunk).asnumpy())
        return resized(((frame, shown_size(frame.shape[:2], upright_aspect)) for frame in frames), indices, spec)
    except (decord.DECORDError, DECORDLimitReachedError, RuntimeError, IndexError):
        return None  # PyAV decodes the video, or says what is wrong with it


def is_trusted(version: str) -> bool:
    """Whether a package with the import name decord gives the frames it is asked for.

    decord2 (versions 1 to 3) gives up waiting for its own decoding thread after 10,000 attempts and returns an earlier frame
    without an error: seen with 3.4.0 on an intact H.264 video.
    """
    return version.startswith("0.")


def read_pyav(
    name: str,
    source: Callable[[], Any],
    container: InputContainer,
    indices: Sequence[int],
    times: FrameTimes | None,
    spec: FrameSpec,
) -> np.ndarray:
    """Read frames with PyAV: uint8 [len(indices), H, W, 3].

    `container` is open, at any position, and nothing of it has been decoded yet; `indices` are ascending.

    Raises:
        VideoError: with reason truncated.
    """
    wanted = list(dict.fromkeys(indices))
    if times is not None:
        stream = video_stream(name, container)
        stream.codec_context.thread_count = 1
        try:
            return resized(by_seeking(container, stream, wanted, times, spec), indices, spec)
        except (av.error.FFmpegError, NotAsExpectedError):
            pass
    with open_container(source) as afresh:
        stream = video_stream(name, afresh)
        stream.codec_context.thread_count = 1
        return resized(_bounded(name, _in_order(name, afresh, stream, wanted, spec), len(indices), spec), indices, spec)


def by_seeking(
    container: InputContainer, stream: VideoStream, wanted: Sequence[int], times: FrameTimes, spec: FrameSpec
) -> Iterator[Picture]:
    """The wanted frames in order, with one seek for each group of them that follows the same keyframe."""
    places = np.searchsorted(times.keyframes, wanted, side="right") - 1
    pts = times.pts[list(wanted)].tolist()
    converter = VideoReformatter()  # one for a video: making one takes longer than using it
    size, aspect = (stream.height, stream.width), pixel_aspect(stream, spec)  # now: the decoder changes them with the frames
    for place, group in itertools.groupby(zip(places.tolist(), pts, strict=True), key=lambda pair: pair[0]):
        if place < 0:
            raise NotAsExpectedError  # the first frames depend on a frame that is not shown
        key = int(times.pts[times.keyframes[place]])
        container.seek(key, stream=stream)
        for frame in _from_keyframe(container, stream, key, [moment for _, moment in group]):
            if size_of(frame) != size:
                raise NotAsExpectedError  # which size is the first frame's is found out in order
            yield upright(frame, converter, spec), _shown(frame, aspect)


def _from_keyframe(container: InputContainer, stream: VideoStream, key: int, moments: Sequence[int]) -> Iterator[VideoFrame]:
    context = stream.codec_context
    remaining, unread, started = list(reversed(moments)), set(moments), False
    # Frames that no other frame refers to are decoded only if they are wanted.
    for packet in container.demux(stream):
        context.skip_frame = "DEFAULT" if packet.pts in unread or packet.pts == key else "NONREF"
        frames = context.decode(packet)
        unread.discard(packet.pts)
        if not unread and packet.size:
            frames += context.decode(None)  # flush: all wanted frames are in the decoder, which need not wait for more
        for frame in frames:
            if not started and frame.pts is not None and frame.pts < key:
                continue  # shown before the keyframe, and incomplete without the packets before it
            if not started:
                if frame.pts != key or not frame.key_frame or frame.pict_type != PictureType.I:
                    raise NotAsExpectedError
                started = True
            if frame.pts == remaining[-1]:
                if frame.is_corrupt:
                    raise NotAsExpectedError
                yield frame
                remaining.pop()
                if not remaining:
                    return
        if not unread:
            break
    raise NotAsExpectedError


def _shown(frame: VideoFrame, aspect: Fraction) -> tuple[int, int]:
    """(height, width) at which players show this frame."""
    height, width = shown_size(size_of(frame), aspect)
    return (width, height) if orientation(frame).exchanged else (height, width)


def _bounded(name: str, pictures: Iterator[Picture], count: int, spec: FrameSpec) -> Iterator[Picture]:
    """The same pictures, unless they are larger than the header said and than is allowed."""
    for pixels, shown in pictures:
        bounds.check_size(name, pixels.shape[:2], target_size(*shown, spec, count), count, spec)
        yield pixels, shown


def _in_order(
    name: str, container: InputContainer, stream: VideoStream, wanted: Sequence[int], spec: FrameSpec
) -> Iterator[Picture]:
    remaining, converter = iter(wanted), VideoReformatter()
    target, number, shown, aspect = next(remaining), -1, None, pixel_aspect(stream, spec)
    try:
        for number, frame in enumerate(container.decode(stream)):
            shown = shown or _shown(frame, aspect)
            if number != target:
                continue
            if frame.is_corrupt:
                raise VideoError("truncated", f"{name} is damaged: frame {number} cannot be decoded whole")
            yield upright(frame, converter, spec), shown
            following = next(remaining, None)
            if following is None:
                return
            target = following
    except av.error.FFmpegError as error:
        raise VideoError("truncated", f"{name} cannot be decoded beyond frame {number}: {error.strerror}") from error
    raise VideoError("truncated", f"{name} ends after {number + 1} decodable frames, before frame {target} of its index")


def resized(pictures: Iterator[Picture], indices: Sequence[int], spec: FrameSpec) -> np.ndarray:
    """Resize frames one by one into one array, uint8 [len(indices), H, W, 3]. `pictures` has one for each different index."""
    out, at = None, 0
    for (frame, shown), times in zip(pictures, collections.Counter(indices).values(), strict=True):
        height, width = target_size(*shown, spec, len(indices))
        if out is None:
            out = np.empty((len(indices), height, width, 3), np.uint8)
        if frame.shape[:2] != (height, width):
            image = PIL.Image.fromarray(np.ascontiguousarray(frame))
            frame = np.asarray(image.resize((width, height), PIL.Image.Resampling.BICUBIC))
        out[at : at + times] = frame
        at += times
    assert out is not None, indices
    return out
