"""Frames as players show them: turned, mirrored, of one size; and what decord cannot do exactly is done by PyAV."""

import fractions
import itertools
import pathlib
import struct

import av
import numpy as np
import pytest
from test_video_times import VIDEOS, drawn, shown_numbers

from vidalign.types import FrameSpec
from vidalign.video.decoding import decode, decode_bytes

BACKENDS = ("decord", "pyav")
SPEC = FrameSpec(num_frames=6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mirrored_video(backend):
    straight, mirrored = decode(VIDEOS / "base.mp4", SPEC), decode(VIDEOS / "hflip.mp4", SPEC, backend)
    np.testing.assert_array_equal(mirrored.frames, straight.frames[:, :, ::-1])
    assert mirrored.backend == "pyav"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("exchanged", "mirrored", "flipped"), list(itertools.product([False, True], repeat=3)))
def test_every_display_matrix_of_quarter_turns(exchanged, mirrored, flipped, backend):
    """x' = a x + c y and y' = b x + d y: the picture is moved as the matrix moves its corners."""
    data = bytearray((VIDEOS / "base.mp4").read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # of a version 0 track header
    assert struct.unpack(">9i", data[at : at + 36])[0] == 1 << 16
    x, y = (-1 if mirrored else 1), (-1 if flipped else 1)
    a, b, c, d = (0, y, x, 0) if exchanged else (x, 0, 0, y)
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    frames = decode_bytes(bytes(data), SPEC, backend).frames
    stored = decode(VIDEOS / "base.mp4", SPEC).frames
    height, width = stored.shape[1:3]
    assert frames.shape[1:3] == ((width, height) if exchanged else (height, width))
    for row, column in [(3, 5), (100, 20), (239, 319), (7, 300)]:
        new_x, new_y = a * column + c * row, b * column + d * row
        new_x, new_y = new_x % frames.shape[2], new_y % frames.shape[1]
        if x < 0:
            new_x = (new_x - 1) % frames.shape[2]  # -1 is the last one, -0 too
        if y < 0:
            new_y = (new_y - 1) % frames.shape[1]
        np.testing.assert_array_equal(frames[:, new_y, new_x], stored[:, row, column])


@pytest.mark.parametrize("backend", BACKENDS)
def test_open_groups_of_pictures(backend):
    wanted = FrameSpec(num_frames=48)
    clip = decode(VIDEOS / "opengop.mp4", wanted, backend)
    assert shown_numbers(clip.frames) == list(clip.indices) == list(range(48))
    few = decode(VIDEOS / "opengop.mp4", SPEC, backend)
    assert shown_numbers(few.frames) == list(few.indices)
    np.testing.assert_array_equal(few.frames, clip.frames[list(few.indices)])
    assert few.backend == "pyav"


def encoded(frames: list[np.ndarray], pix_fmt: str, options: dict[str, str], path: pathlib.Path) -> pathlib.Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("pix_fmt", "params"), [("yuv420p10le", ""), ("yuv420p", "interlaced=1")], ids=["10_bit", "interlaced"]
)
def test_what_decord_would_change_is_handed_over(tmp_path, pix_fmt, params):
    options = {"preset": "veryfast", "crf": "12", "x264-params": f"keyint=12:{params}"}
    path = encoded([drawn(number) for number in range(24)], pix_fmt, options, tmp_path / "a.mp4")
    ours, theirs = (decode(path, SPEC, backend) for backend in ("pyav", "decord"))
    assert theirs.backend == theirs.metadata()["video_backend"] == "pyav"
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    assert shown_numbers(ours.frames) == list(ours.indices)


def test_what_decord_does_exactly_stays_with_it():
    clip = decode(VIDEOS / "base.mp4", SPEC, "decord")
    assert clip.backend == "decord"
    np.testing.assert_array_equal(clip.frames, decode(VIDEOS / "base.mp4", SPEC).frames)


# A resolution that changes


def two_sizes(path: pathlib.Path, codec: str, sizes: list[int], options: dict[str, str]) -> pathlib.Path:
    """12 frames of each size, as shares of 160x96, in one stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = 96 // sizes[0], 160 // sizes[0], "yuv420p"
        start = 0
        for share in sizes:
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height, encoder.pix_fmt = 160 // share, 96 // share, "yuv420p"
            encoder.time_base, encoder.framerate, encoder.options = fractions.Fraction(1, 24), 24, options
            packets = []
            for number in range(12):
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(drawn(start + number)[::share, ::share]), format="rgb24"
                )
                frame.pts = number
                packets += encoder.encode(frame)
            packets += encoder.encode(None)
            for packet in packets:
                packet.pts, packet.dts, packet.stream = packet.pts + start, packet.dts + start, stream
                packet.time_base = encoder.time_base
                container.mux(packet)
            start += 12
    return path


REALTIME = {"deadline": "realtime", "cpu-used": "8", "b": "4M"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [[1, 2], [2, 1]], ids=["smaller", "larger"])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.webm", "libvpx", REALTIME), ("a.webm", "libvpx-vp9", REALTIME), ("a.mkv", "libvpx", REALTIME)],
)
def test_frames_of_another_size_are_scaled_to_the_first(tmp_path, name, codec, options, sizes, backend):
    path = two_sizes(tmp_path / name, codec, sizes, options)
    for spec in (FrameSpec(num_frames=24), FrameSpec(num_frames=3), FrameSpec(num_frames=8, height=48, width=80)):
        clip = decode(path, spec, backend)
        assert clip.backend == "pyav"
        shape = (spec.height, spec.width) if spec.height else (96 // sizes[0], 160 // sizes[0])
        assert clip.frames.shape[1:3] == shape
        assert shown_numbers(clip.frames) == list(clip.indices)


@pytest.mark.parametrize("sizes", [[1, 2], [2, 1]], ids=["smaller", "larger"])
def test_h264_of_two_sizes(tmp_path, sizes):
    """Two raw streams end to end, as a camera that changes its mode writes them."""
    data = b""
    for part, share in enumerate(sizes):
        frames = [np.ascontiguousarray(drawn(12 * part + number)[::share, ::share]) for number in range(12)]
        options = {"preset": "veryfast", "crf": "12", "bf": "0"}
        data += encoded(frames, "yuv420p", options, tmp_path / f"{part}.h264").read_bytes()
    for backend in BACKENDS:
        clip = decode_bytes(data, FrameSpec(num_frames=24), backend)
        assert clip.frames.shape == (24, 96 // sizes[0], 160 // sizes[0], 3)
        assert shown_numbers(clip.frames) == list(range(24))


def test_the_second_size_alone_is_scaled_too(tmp_path):
    path = two_sizes(tmp_path / "a.webm", "libvpx", [1, 2], REALTIME)
    clip = decode(path, FrameSpec(num_frames=1, min_frames=1))
    assert (clip.indices, clip.frames.shape[1:3]) == ((12,), (96, 160))
    assert shown_numbers(clip.frames) == [12]
