"""What a video file holds and what is wrong with it, found without decoding a frame.

For an MP4 or MOV file whose boxes are whole and whose index is simple (`vidalign.video.mp4`), the index is enough. For every
other file, all packets are read, and what is there is compared with what the header promises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vidalign.errors import VideoError
from vidalign.video import mp4
from vidalign.video.packets import MAX_STEP_S, Frames, FrameTimes, Packets, frames_of
from vidalign.video.timing import Timing, timing

# FFmpeg also "opens" playlists and scripts (hls, dash, concat), which make it fetch other files, and renders plain text as a
# video (tty). Only containers that carry their own frames are allowed; the audio ones are listed so that they can be reported as
# having no video stream.
CONTAINERS = (
    "3g2,3gp,asf,av1,avi,dv,flv,gif,h264,hevc,ivf,m4a,m4v,matroska,mj2,mov,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,"
    "vc1,webm,wtv,aac,ac3,aiff,amr,ape,caf,eac3,flac,mp3,wav"
)
REORDERING = ("h264", "hevc")  # whatever their header says
_FTYP = b"ftyp"
_MAGIC = {4: _FTYP, 0: b"\x1aE\xdf\xa3"}  # MP4/MOV and Matroska/WebM: recognisable even when cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """What is known of a video before anything of it is decoded.

    `times` is None where the container does not say reliably when each frame is shown: such a video is decoded from its start.
    `closed`: see `vidalign.video.packets.Frames`.
    """

    num_frames: int
    timing: Timing
    times: FrameTimes | None = None
    closed: bool = False

    @property
    def fps(self) -> float:
        return self.timing.fps


def open_container(source: Callable[[], Any]) -> InputContainer:
    """Open a container of one of the allowed formats. Raises what PyAV raises."""
    container = av.open(source(), "r", container_options={"format_whitelist": CONTAINERS})
    assert isinstance(container, InputContainer)
    return container


def video_stream(name: str, container: InputContainer) -> VideoStream:
    """The main video stream of a container. Raises `VideoError` with reason no_video_stream if there is none but cover art."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or Disposition.attached_pic in stream.disposition:
        kinds = ", ".join(sorted({item.type for item in container.streams})) or "none"
        raise VideoError("no_video_stream", f"{name} has no video stream (streams: {kinds})")
    return stream


def open_whole(name: str, head: bytes, source: Callable[[], Any]) -> InputContainer:
    """Open a container and make sure that its header and index are there.

    `head` holds the first bytes of the file; every call of `source` gives the file's path or a newly opened binary file.

    Raises:
        VideoError: with reason not_a_video or truncated.
    """
    recognised = any(head[at:].startswith(magic) for at, magic in _MAGIC.items())
    no_index = VideoError("truncated", f"{name} begins like a video, but its index is missing or cut off")
    cut = _with_file(source, mp4.where_cut) if _is_mp4(head) else ""
    if cut:
        raise no_index if cut == "index" else VideoError("truncated", f"{name} is cut: it ends in the middle of its frames")
    try:
        container = open_container(source)
    except (av.error.FFmpegError, ValueError) as error:
        if recognised:
            raise no_index from error
        raise VideoError("not_a_video", f"{name} is not a video in any known container") from error
    if recognised and all(item.type not in ("video", "audio") for item in container.streams):
        container.close()
        raise no_index  # the streams are announced, but the file is cut off before their description
    return container


def probe(name: str, head: bytes, source: Callable[[], Any], container: InputContainer) -> Probe:
    """The number, rate and times of a video's frames. `container` is what `open_whole` returned for the other three arguments.

    Raises:
        VideoError: with reason not_a_video, no_video_stream or truncated.
    """
    stream = video_stream(name, container)
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise VideoError("not_a_video", f"{name} has a video stream without a frame rate")
    index = _with_file(source, lambda file: mp4.read_index(file, stream.id)) if _is_mp4(head) else None
    if index is not None and len(index.times) == stream.frames:
        found = _from_index(name, container, stream, index, float(rate))
        if found is not None:
            return found
        container.seek(0)
    return _from_packets(name, container, stream, float(rate))


def _is_mp4(head: bytes) -> bool:
    return head[4:].startswith(_FTYP)


def _with_file(source: Callable[[], Any], read: Callable[[Any], Any]) -> Any:
    opened = source()
    with opened if hasattr(opened, "read") else open(opened, "rb") as file:
        return read(file)


def _from_index(name: str, container: InputContainer, stream: VideoStream, index: mp4.Index, fps: float) -> Probe | None:
    """What the index says, or None if the first packet is not the one that the index names."""
    try:
        first = next(container.demux(stream))
    except (av.error.FFmpegError, StopIteration):
        return None
    if first.pts is None or first.is_discard or first.is_corrupt or first.is_keyframe != bool(index.keyframes[0]):
        return None
    frames = frames_of(index.times + (first.pts - int(index.times[0])), index.durations, index.keyframes)
    return None if frames.times is None else _probe(stream, frames, len(index.times), fps)


def _from_packets(name: str, container: InputContainer, stream: VideoStream, fps: float) -> Probe:
    ends: dict[int, int] = {}  # last moment of each stream, in its time base
    packets = Packets()
    num_corrupt, number = 0, stream.index
    try:
        for packet in container.demux():
            if not packet.size:
                continue
            at, pts, dts, duration = packet.stream_index, packet.pts, packet.dts, packet.duration or 0
            moment = dts if pts is None else pts
            if moment is not None:
                end = moment + duration
                if end > ends.get(at, end - 1):
                    ends[at] = end
            if at == number:
                if not packet.is_discard:
                    packets.pts.append(pts)
                    packets.dts.append(dts)
                    packets.durations.append(duration)
                    packets.keyframes.append(packet.is_keyframe)
                num_corrupt += packet.is_corrupt
    except av.error.FFmpegError as error:
        message = f"{name} cannot be read beyond frame {len(packets.pts)}: {error.strerror}"
        raise VideoError("truncated", message) from error
    seconds = {at: float(end * (container.streams[at].time_base or 0)) for at, end in ends.items()}
    num_frames = len(packets.pts)
    _check_whole(name, container, stream, num_frames, num_corrupt, seconds, fps)
    context = stream.codec_context
    reorders = bool(context.has_b_frames) or context.name in REORDERING
    max_step = MAX_STEP_S / float(stream.time_base or 1)
    frames = packets.frames(container.format.name, reorders=reorders, max_step=max_step)
    if frames.shown is None and stream.guessed_rate:  # a raw stream, whose container's rate is FFmpeg's default
        fps = float(stream.guessed_rate)
    return _probe(stream, frames, num_frames, fps)


def _probe(stream: VideoStream, frames: Frames, num_frames: int, fps: float) -> Probe:
    even = Timing(fps=fps, duration_s=num_frames / fps)
    if frames.shown is not None and stream.time_base is not None:
        even = timing(frames.shown, stream.time_base, fps, frames.last)
    return Probe(num_frames=num_frames, timing=even, times=frames.times, closed=frames.closed)


def _check_whole(
    name: str,
    container: InputContainer,
    stream: VideoStream,
    num_frames: int,
    num_corrupt: int,
    ends: dict[int, float],
    fps: float,
) -> None:
    """Raise if the packets end before the header says they do. `ends` is the last moment of each stream, in seconds.

    The MP4 and AVI headers promise a number of frames. That alone proves nothing (an edit list hides frames, an AVI skips
    repeated ones), so the missing time must agree with it. Matroska and FLV promise a duration, of the longest stream and counted
    from 0. MPEG-TS and raw streams promise nothing: one that was cut between two frames is a shorter video.
    """
    if num_corrupt:
        raise VideoError("truncated", f"{name} is cut or damaged: {num_corrupt} of its {num_frames} frames are incomplete")
    if stream.frames and "avi" in container.format.name:
        promised, end = stream.frames / fps, ends.get(stream.index, 0.0)
    elif stream.duration is not None and stream.time_base is not None:
        promised, end = float(((stream.start_time or 0) + stream.duration) * stream.time_base), ends.get(stream.index, 0.0)
    elif container.duration is not None:
        promised, end = container.duration / av.time_base, max(ends.values(), default=0.0)
    else:
        return
    short = promised - end
    if (not stream.frames or num_frames < stream.frames) and short > max(2 / fps, 0.01 * promised, 0.1):
        raise VideoError(
            "truncated", f"{name} is cut: its header promises {promised:.2f} s, but its frames end at {max(end, 0):.2f} s"
        )
