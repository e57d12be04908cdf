"""Which videos decord decodes exactly as PyAV does: all that is known before it is asked.

decord's FFmpeg is of 2018. It takes one frame for another after a seek in open groups of pictures, in MPEG transport streams and
where times are missing, lands elsewhere in FLV, squeezes more than 8 bits wrongly, mixes the colours of interlaced lines, does not
notice that a stream goes on in another size or scales it by another filter, knows no mirroring and no turning outside of MP4, and
may take another of several pictures. Codecs that leave the last bit of a pixel to the decoder are not among its codecs here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidalign.video import tone
from vidalign.video.display import Orientation, orientation, size_of
from vidalign.video.packets import FrameTimes
from vidalign.video.probing import Probe, open_container, video_stream

# Codecs whose every bit is defined. What tells that the size changes: a parameter set (its type, as a function of the first byte of
# a unit), or else the keyframes themselves, which are decoded: video calls change the size of VP8 and VP9 with the line.
PARAMETER_SET: dict[str, Callable[[int], bool] | None] = {
    "h264": lambda first: first & 0x1F == 7,
    "hevc": lambda first: first >> 1 & 0x3F == 33,
    "vp8": None,
    "vp9": None,
}
CONTAINERS = {"mov", "matroska", "webm", "avi", "ivf"}  # in which it finds the frames that it is asked for
MAX_SEEKS = 4096  # a video of more keyframes is read from start to end


def in_decord(name: str, source: Callable[[], Any], probe: Probe) -> Orientation | None:
    """How the frames of this video are turned, or None where decord cannot be relied upon. The first frame is decoded."""
    if probe.times is None or not probe.closed:
        return None
    with open_container(source) as container:
        formats = set(container.format.name.split(","))
        stream = video_stream(name, container)
        codec = stream.codec_context.name
        if not CONTAINERS & formats or codec not in PARAMETER_SET or len(container.streams.video) > 1:
            return None
        try:
            is_set = PARAMETER_SET[codec]
            first = next(container.decode(stream), None)
            if first is None or not is_plain(first):
                return None
            if is_set is None:
                stream.codec_context.skip_frame = "NONKEY"
                if any(size_of(frame) != size_of(first) for frame in container.decode(stream)):
                    return None
            elif not sets_are_constant(container, stream, probe.times, is_set):
                return None
        except av.error.FFmpegError:
            return None
    turn = orientation(first)
    return turn if turn == Orientation() or ("mov" in formats and not turn.mirrors) else None


def is_plain(frame: VideoFrame) -> bool:
    """Progressive, of 8 bits, and no HDR."""
    if frame.interlaced_frame or frame.color_trc in tone.HDR:
        return False
    return all(component.bits == 8 for component in frame.format.components)


def sets_are_constant(
    container: InputContainer, stream: VideoStream, times: FrameTimes, is_set: Callable[[int], bool]
) -> bool:
    """Whether all keyframes have the parameter set of the header, or none of their own."""
    header = bytes(stream.codec_context.extradata or b"")
    length_bytes = _length_bytes(header, stream.codec_context.name)
    known: set[bytes] = set()
    for data, is_new in _keyframes(container, stream, times):
        if is_new:
            return False
        for unit in units(data, length_bytes):
            if unit and is_set(unit[0]) and bytes(unit) not in header:
                known.add(bytes(unit))
                if header or len(known) > 1:
                    return False
    return True


def _keyframes(container: InputContainer, stream: VideoStream, times: FrameTimes) -> Iterator[tuple[bytes, bool]]:
    """The bytes of each keyframe, and whether the container has another header from there on."""
    if len(times.keyframes) > MAX_SEEKS:
        container.seek(0)
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.size:
                yield bytes(packet), packet.has_sidedata("new_extradata")
        return
    for pts in times.pts[times.keyframes].tolist():
        container.seek(pts, stream=stream)
        packet = next(container.demux(stream))
        yield bytes(packet), packet.has_sidedata("new_extradata")


def _length_bytes(header: bytes, codec: str) -> int:
    """How many bytes hold the length of a unit, from avcC or hvcC (ISO/IEC 14496-15); 0 where start codes separate units."""
    at = 4 if codec == "h264" else 21
    return (header[at] & 3) + 1 if len(header) > at and header[0] == 1 else 0


def units(data: bytes, length_bytes: int) -> Iterator[memoryview]:
    """The NAL units of a packet."""
    view, at = memoryview(data), 0
    if length_bytes:
        while at + length_bytes < len(view):
            size = int.from_bytes(view[at : at + length_bytes], "big")
            yield view[at + length_bytes : at + length_bytes + size]
            at += length_bytes + size
        return
    start = data.find(b"\0\0\1")
    while start >= 0:
        following = data.find(b"\0\0\1", start + 3)
        yield memoryview(data[start + 3 : following if following >= 0 else len(data)].rstrip(b"\0"))
        start = following
