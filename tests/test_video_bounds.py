"""What a file claims is bounded: a small one cannot ask for hours, or for gigabytes."""

import fractions

import av
import numpy as np
import pytest
from test_video_times import VIDEOS, X264, drawn

from serving.frames import FrameSpecLoader
from serving.refusals import unusable_video
from serving.video_loader import media_io_kwargs
from vidalign.config.loading import parse_config
from vidalign.errors import ConfigError, VideoError
from vidalign.types import FrameSpec
from vidalign.video.api import decode as decode_by_name
from vidalign.video.decoding import decode, decode_bytes

BACKENDS = ("decord", "pyav")
RAW = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t.jsonl"}}


def refused(path, spec: FrameSpec, words: str, backend: str = "pyav") -> None:
    with pytest.raises(VideoError, match=words) as caught:
        decode(path, spec, backend)
    assert caught.value.reason == "too_long"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spec", [FrameSpec(), FrameSpec(num_frames=None, fps=1.0, min_frames=1)], ids=["8", "1fps"])
def test_sixteen_frames_do_not_make_four_hours(spec, backend):
    refused(VIDEOS / "claims_4_hours.mp4", spec, r"claims to be 13,501 s long and its frames carry 901 s", backend)


@pytest.mark.parametrize("container", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize(
    "starts",
    [
        [i / 24 for i in range(35)] + [9000.0],  # one frame far behind the others
        [0.0, 5000.0, *(5000 + i / 24 for i in range(1, 35))],
        [i * 300.0 for i in range(36)],
    ],
    ids=["late", "early", "sparse"],
)
def test_a_gap_is_no_video(tmp_path, container, starts):
    path = timed(tmp_path / f"a.{container}", starts)
    if container == "ts" and starts[2] != 600.0:
        clip = decode(path, FrameSpec(num_frames=4))  # its clock may be set anew at any time, so that one gap means nothing
        assert clip.duration_s < 60
        return
    refused(path, FrameSpec(), "claims to be")


def timed(path, starts: list[float]):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={**X264, "x264-params": "keyint=12:bframes=0"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.codec_context.time_base = fractions.Fraction(1, 12_288)
        for number, start in enumerate(starts):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            frame.pts, frame.time_base = round(start * 12_288), fractions.Fraction(1, 12_288)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_hours_that_only_the_header_claims_do_not_count(backend):
    """Movie, track and media last 4 hours, and their 48 frames 2 seconds."""
    data = bytearray((VIDEOS / "base.mp4").read_bytes())
    for box, at in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        place = data.index(box) + 4 + at
        data[place : place + 4] = (14_400 * (12_288 if box == b"mdhd" else 1000)).to_bytes(4, "big")
    clip = decode_bytes(bytes(data), FrameSpec(num_frames=4), backend)
    assert (clip.fps, clip.duration_s, clip.indices) == (24.0, 2.0, (6, 18, 30, 42))


def test_hours_of_the_last_frame_do_not_count():
    data = bytearray((VIDEOS / "base.mp4").read_bytes())
    at = data.index(b"stts") + 8
    assert data[at : at + 12] == b"".join(value.to_bytes(4, "big") for value in (1, 48, 512))
    size = int.from_bytes(data[at - 12 : at - 8], "big")
    table = b"".join(value.to_bytes(4, "big") for value in (2, 47, 512, 1, 14_400 * 12_288))
    data[at - 12 : at + 12] = (size + 8).to_bytes(4, "big") + b"stts" + bytes(4) + table
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = data.index(box) - 4
        data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + 8).to_bytes(4, "big")
    clip = decode_bytes(bytes(data), FrameSpec(num_frames=4))
    assert clip.duration_s == pytest.approx(2.0)
    assert clip.indices == (6, 18, 30, 42)


def test_stills_that_last_are_a_video(tmp_path):
    """Slides: ten minutes at most may consist of a few frames, and longer videos of frames that stand a minute."""
    path = timed(tmp_path / "a.mp4", [0.0, 200.0, 400.0, 401.0])
    clip = decode(path, FrameSpec(num_frames=4))
    assert clip.indices == (0, 0, 1, 1)
    assert clip.duration_s == pytest.approx(402, abs=1)
    slides = timed(tmp_path / "b.mp4", [i * 45.0 for i in range(30)])
    assert decode(slides, FrameSpec(num_frames=4)).duration_s == pytest.approx(29 * 45 + 1, abs=1)


def test_the_longest_duration_is_an_option():
    refused(VIDEOS / "base.mp4", FrameSpec(max_duration_s=1.9), "is 2 s long and video.max_duration_s is 1.9")
    refused(VIDEOS / "vfr.mkv", FrameSpec(max_duration_s=12.0), "is 13 s long")
    assert decode(VIDEOS / "base.mp4", FrameSpec(max_duration_s=2.0)).duration_s == 2.0


def test_pixels_are_bounded_before_and_after_resizing():
    stored = 240 * 320
    refused(VIDEOS / "base.mp4", FrameSpec(max_pixels_decoded=16 * stored - 1), "frames of 320x240")
    assert len(decode(VIDEOS / "base.mp4", FrameSpec(max_pixels_decoded=16 * stored)).frames) == 8
    refused(VIDEOS / "base.mp4", FrameSpec(num_frames=17, max_pixels_decoded=16 * stored), "17 frames of 320x240 to be kept")
    small = FrameSpec(num_frames=17, max_pixels=1000, max_pixels_decoded=16 * stored)
    assert len(decode(VIDEOS / "base.mp4", small).frames) == 17


def test_a_frame_that_is_larger_than_the_header_says(tmp_path):
    """The first frames are small, and raw streams have no header that says more."""
    data = b""
    for side in (64, 640):
        with av.open(str(tmp_path / f"{side}.h264"), "w") as container:
            stream = container.add_stream("libx264", rate=24, options={**X264, "bf": "0"})
            stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
            for _ in range(4):
                frame = np.zeros((side, side, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        data += (tmp_path / f"{side}.h264").read_bytes()
    assert decode_bytes(data, FrameSpec(num_frames=8)).frames.shape == (8, 64, 64, 3)
    with pytest.raises(VideoError) as caught:
        decode_bytes(data, FrameSpec(num_frames=8, max_pixels_decoded=16 * 64 * 64))
    assert caught.value.reason == "too_long"


def test_the_endpoint_refuses_it_too():
    for name, spec in [("claims_4_hours.mp4", FrameSpec()), ("base.mp4", FrameSpec(max_duration_s=1.0))]:
        options = media_io_kwargs(spec)["video"]
        options.pop("video_backend")
        with pytest.raises(ValueError, match=r"video cannot be used \(too_long\)") as caught:
            FrameSpecLoader().load_bytes((VIDEOS / name).read_bytes(), **options)
        error = unusable_video(str(caught.value))
        assert error is not None
        assert error.reason == "too_long"


def test_configuration_passes_the_bounds_on():
    spec = parse_config({**RAW}, ["video.max_duration_s=100", "video.max_pixels_decoded=1000000"]).video.frame_spec()
    assert (spec.max_duration_s, spec.max_pixels_decoded) == (100.0, 1_000_000)
    assert FrameSpec.from_row(spec.to_row()) == spec
    assert spec.key() != FrameSpec().key()
    assert (
        parse_config({**RAW}, []).video.frame_spec().key() == FrameSpec().key() == FrameSpec(max_duration_s=21_600.0).key()
    )
    with pytest.raises(ConfigError, match="max_duration_s"):
        parse_config({**RAW}, ["video.max_duration_s=0"])
    with pytest.raises(VideoError, match="max_duration_s"):
        decode_by_name(VIDEOS / "base.mp4", num_frames=2, max_duration_s=1.0)
