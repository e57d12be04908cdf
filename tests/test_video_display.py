"""Frames as players show them: turned, mirrored, of one size; and what decord cannot do exactly is done by PyAV."""

import fractions
import itertools
import pathlib
import struct

import av
import numpy as np
import pytest
from test_video_times import VIDEOS, drawn, shown_numbers

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video import exact, tone
from vidalign.video.decoding import decode, decode_bytes
from vidalign.video.display import shown_size

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


@pytest.mark.parametrize("sizes", [[1, 2], [2, 1]], ids=["smaller", "larger"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_decord_is_not_asked_for_h264_that_goes_on_in_another_size(tmp_path, name, sizes):
    """The second parameter set is inside of the stream: with `repeat-headers`, encoders write one before every keyframe."""
    options = {"preset": "veryfast", "crf": "12", "bf": "0", "x264-params": "repeat-headers=1:keyint=6"}
    path = two_sizes(tmp_path / name, "libx264", sizes, options)
    frames = [decode(path, FrameSpec(num_frames=24), backend) for backend in BACKENDS]
    assert [clip.backend for clip in frames] == ["pyav", "pyav"]
    np.testing.assert_array_equal(frames[0].frames, frames[1].frames)


def test_repeated_parameter_sets_are_no_change(tmp_path):
    options = {"preset": "veryfast", "x264-params": "repeat-headers=1:keyint=6"}
    path = encoded([drawn(number) for number in range(24)], "yuv420p", options, tmp_path / "a.mp4")
    assert decode(path, SPEC, "decord").backend == "decord"


def test_units_of_a_packet():
    lengths = b"\0\0\0\2\x67\1\0\0\0\1\x65"
    assert [bytes(unit) for unit in exact.units(lengths, 4)] == [b"\x67\1", b"\x65"]
    assert [bytes(unit) for unit in exact.units(lengths + b"\0\0\0\x7f\1", 4)][-1] == b"\1", (
        "one that is cut ends the packet"
    )
    codes = b"\0\0\0\1\x67\1\0\0\1\x65"
    assert [bytes(unit) for unit in exact.units(codes, 0)] == [b"\x67\1", b"\x65"]
    assert list(exact.units(b"", 0)) == list(exact.units(b"", 4)) == []


# Pixels that are not square, and HDR


def test_the_side_that_is_too_short_is_made_longer():
    assert shown_size((96, 160), fractions.Fraction(4, 3)) == (96, 213)
    assert shown_size((96, 160), fractions.Fraction(3, 4)) == (128, 160)
    assert shown_size((96, 160), fractions.Fraction(1)) == (96, 160)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> pathlib.Path:
    """160x96 with pixels twice as wide as high."""
    path = tmp_path_factory.mktemp("wide") / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(2)
        for number in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn(number), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_of_a_video_with_wide_pixels(wide, backend):
    for options, size in (
        ({}, (96, 320)),
        ({"square_pixels": False}, (96, 160)),
        ({"max_pixels": 96 * 320 // 4}, (48, 160)),
        ({"max_pixels": 96 * 160 // 4, "square_pixels": False}, (48, 80)),
        ({"total_pixels": 96 * 320}, (48, 160)),
        ({"height": 50, "width": 60}, (50, 60)),
    ):
        clip = decode(wide, FrameSpec(num_frames=4, **options), backend)
        assert (clip.backend, clip.frames.shape[1:3]) == (backend, size)
        assert shown_numbers(clip.frames) == list(clip.indices)


def test_pixels_that_a_shape_adds_are_bounded_too(wide):
    decode(wide, FrameSpec(num_frames=16, max_pixels_decoded=16 * 96 * 160, square_pixels=False))
    with pytest.raises(VideoError, match="16 frames of 320x96 to be kept"):
        decode(wide, FrameSpec(num_frames=16, max_pixels_decoded=16 * 96 * 160))


def test_tone_mapping_by_hand():
    """White of 203 cd/m2 is PQ 0.5807 (BT.2408); Hable's curve makes it 0.511 of 1,000 cd/m2, and 0.511^(1/2.4) is 0.756."""
    grey = np.full((1, 3), 0.5807)
    np.testing.assert_allclose(tone.tone_mapped(grey, tone.PQ), 0.756, atol=0.001)
    for transfer in tone.HDR:
        ends = tone.tone_mapped(np.array([[0.0] * 3, [1.0] * 3]), transfer)
        np.testing.assert_allclose(ends[0], 0, atol=0.02)
        np.testing.assert_allclose(ends[1], 1, atol=1e-3)
    ramp = tone.tone_mapped(np.linspace(0, 0.75, 50)[:, None].repeat(3, 1), tone.PQ)
    assert (np.diff(ramp, axis=0) > 0).all(), "brighter stays brighter up to 1,000 cd/m2"
    np.testing.assert_allclose(tone.pq(np.array([0.5807, 0.7518])), [203, 1000], rtol=2e-3)
    np.testing.assert_allclose(tone.hlg(np.array([[1.0, 0.75, 0.0]])), [[1000, 203, 0]], rtol=2e-3)


def test_the_table_is_the_formula():
    pixels = np.random.default_rng(0).integers(20, 190, (40, 40, 3), np.uint8)
    for transfer in tone.HDR:
        exactly = tone.tone_mapped(pixels.reshape(-1, 3) / 255, transfer).reshape(pixels.shape) * 255
        assert np.abs(tone.to_sdr(pixels, transfer) - exactly).mean() < 0.5


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_shown_as_sdr_unless_told_otherwise(tmp_path, transfer, name):
    """Of 8 bits too, which decord would leave as it is stored."""
    path = tmp_path / "a.mp4"
    said = {"PQ": "smpte2084", "HLG": "arib-std-b67"}[name]
    options = {"preset": "veryfast", "x264-params": f"transfer={said}:colormatrix=bt2020nc:colorprim=bt2020"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p"
        for _ in range(4):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((96, 160, 3), [60, 140, 60], np.uint8), format="rgb24"))
            )
        container.mux(stream.encode())
    for backend in BACKENDS:
        shown, stored = (decode(path, FrameSpec(num_frames=2, hdr_to_sdr=to_sdr), backend) for to_sdr in (True, False))
        assert shown.backend == stored.backend == "pyav"
        np.testing.assert_array_equal(shown.frames[0], tone.to_sdr(stored.frames[0], transfer))
        assert np.abs(shown.frames.astype(int) - stored.frames).max() > 20
