"""Sampling by presentation times, in many containers: the frames' own numbers, drawn as bars, tell which frames came out."""

import dataclasses
import fractions
import pathlib

import av
import numpy as np
import pytest

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video.augment import Augmentation, apply
from vidalign.video.decoding import decode, decode_bytes
from vidalign.video.frame_cache import FrameCache, load_clip
from vidalign.video.packets import Packets, frames_of
from vidalign.video.timing import sampled, timing

VIDEOS = pathlib.Path(__file__).parent / "videos"
BACKENDS = ("decord", "pyav")
NUM_BARS = 16
HEIGHT, WIDTH = 96, 160


def shown_numbers(frames: np.ndarray) -> list[int]:
    """The number that is drawn in the top sixth of each frame: 16 bars, lowest bit left, white is 1."""
    rows = frames[:, frames.shape[1] // 12].mean(axis=-1)  # [F, W]
    width = frames.shape[2]
    bits = np.stack([rows[:, int((bar + 0.5) * width / NUM_BARS)] > 127 for bar in range(NUM_BARS)], axis=1)
    return [int(sum(1 << bar for bar in np.flatnonzero(row))) for row in bits]


def drawn(number: int) -> np.ndarray:
    """uint8 [H, W, 3]: the bars above a texture that moves."""
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for bar in range(NUM_BARS):
        if number >> bar & 1:
            frame[: HEIGHT // 6, bar * WIDTH // NUM_BARS : (bar + 1) * WIDTH // NUM_BARS] = 255
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT - HEIGHT // 6))
    frame[HEIGHT // 6 :] = (((x + 3 * number) // 8 + y // 8) % 2 * 120 + 60)[..., None]
    return frame


# The files that went wrong once


def test_the_bars_tell_the_frames_apart():
    clip = decode(VIDEOS / "base.mp4", FrameSpec(num_frames=48))
    assert shown_numbers(clip.frames) == list(range(48))
    assert (clip.fps, clip.duration_s, clip.times) == (24.0, 2.0, None)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_variable_frame_rate_is_sampled_by_time(backend):
    clip = decode(VIDEOS / "vfr.mkv", FrameSpec(num_frames=None, fps=1.0), backend)
    assert clip.duration_s == 13.0
    assert shown_numbers(clip.frames) == list(clip.indices) == [12, *range(25, 48, 2)]
    assert clip.times_s == pytest.approx([0.5, *np.arange(1.5, 13)], abs=1e-3)
    assert clip.fps == pytest.approx(48 / 13)
    assert clip.total_num_frames == 48
    eight = decode(VIDEOS / "vfr.mkv", FrameSpec(num_frames=4), backend)
    assert shown_numbers(eight.frames) == list(eight.indices) == [25, 31, 38, 44], "at 1.625, 4.875, 8.125 and 11.375 s"


def test_models_are_told_the_times_of_a_variable_frame_rate():
    from transformers.video_utils import VideoMetadata

    clip = decode(VIDEOS / "vfr.mkv", FrameSpec(num_frames=None, fps=1.0))
    metadata = clip.metadata()
    assert metadata.pop("do_sample_frames") is False
    assert all(isinstance(index, int) for index in metadata["frames_indices"])
    told = VideoMetadata(**metadata)
    assert told.timestamps == pytest.approx(clip.times_s, abs=1e-3)
    assert told.duration == 13.0
    assert told.sampled_fps == pytest.approx(1.0)


def test_times_stay_with_their_frames(tmp_path):
    clip = decode(VIDEOS / "vfr.mkv", FrameSpec(num_frames=None, fps=1.0))
    back = load_clip(FrameCache(tmp_path).put("ab" * 32, FrameSpec(num_frames=None, fps=1.0), clip))
    assert (back.times, back.metadata()) == (clip.times, clip.metadata())
    assert clip.times is not None
    kept = Augmentation(crop=(0, 0, 240, 320), jitter=None, grayscale=False, blur_sigma=None, flip=False, frames=(1, 12))
    fewer = apply(clip, kept)
    assert fewer.times == (clip.times[1], clip.times[12])
    with pytest.raises(AssertionError):
        dataclasses.replace(clip, times=(0.0,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_avi_with_b_frames(backend):
    """AVI stores no presentation times, and those that FFmpeg makes up are in the wrong order."""
    for num_frames in (48, 5):
        clip = decode(VIDEOS / "h264_bframes.avi", FrameSpec(num_frames=num_frames), backend)
        assert shown_numbers(clip.frames) == list(clip.indices)
        assert (clip.fps, clip.duration_s, clip.total_num_frames, clip.backend) == (24.0, 2.0, 48, "pyav")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "num_frames", "fps"), [("start_0.3_s.mkv", 100, 25.0), ("ten_fps.flv", 60, 10.0)])
def test_a_late_start_is_no_cut(name, num_frames, fps, backend):
    clip = decode(VIDEOS / name, FrameSpec(num_frames=8), backend)
    assert (clip.total_num_frames, clip.fps, clip.duration_s) == (num_frames, fps, num_frames / fps)
    assert clip.times_s[0] == clip.indices[0] / fps, "counted from the first frame"


@pytest.mark.parametrize(("name", "share"), [("start_0.3_s.mkv", 0.6), ("ten_fps.flv", 0.6), ("vfr.mkv", 0.7)])
def test_a_cut_is_still_one(name, share):
    data = (VIDEOS / name).read_bytes()
    with pytest.raises(VideoError) as caught:
        decode_bytes(data[: int(len(data) * share)], FrameSpec())
    assert caught.value.reason == "truncated"


# A corpus: containers x codecs x oddities

NUM_FRAMES = 36
EVEN_24 = [fractions.Fraction(i, 24) for i in range(NUM_FRAMES)]
EVEN_10 = [fractions.Fraction(i, 10) for i in range(NUM_FRAMES)]
EVEN_15 = [fractions.Fraction(i, 15) for i in range(NUM_FRAMES)]
VARIABLE = [fractions.Fraction(i, 24) if i < 12 else fractions.Fraction(i - 11, 2) for i in range(NUM_FRAMES)]  # 12.5 s
TIMES = {
    "24": EVEN_24,
    "10": EVEN_10,
    "15": EVEN_15,
    "late": [time + fractions.Fraction(3, 10) for time in EVEN_24],
    "variable": VARIABLE,
}
X264 = {"preset": "veryfast", "crf": "12"}
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {**X264, "x264-params": "keyint=12:bframes=0:scenecut=0"}),
    "h264_b": ("libx264", {**X264, "x264-params": "keyint=12:bframes=3:scenecut=0"}),
    "h264_open": ("libx264", {**X264, "x264-params": "keyint=12:bframes=3:open-gop=1:scenecut=0"}),
    "mpeg4": ("mpeg4", {"g": "12", "b": "4M"}),
    "mpeg4_b": ("mpeg4", {"g": "12", "bf": "2", "b": "4M"}),
    "mpeg2": ("mpeg2video", {"g": "12", "bf": "2", "b": "4M"}),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "g": "12", "b": "2M"}),
    "vp8_hidden": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5", "b": "2M", "g": "30"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "12", "b": "2M"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "keyint=12:bframes=3:log-level=none:crf=12"}),
    "flv": ("flv", {"g": "12", "b": "4M"}),
    "gif": ("gif", {}),
}
CONTAINERS = {
    "mp4": ("h264", "h264_b", "h264_open", "mpeg4", "mpeg4_b", "hevc", "vp9"),
    "mov": ("h264_b", "h264_open", "mpeg4", "hevc"),
    "mkv": ("h264", "h264_b", "h264_open", "mpeg4", "mpeg4_b", "mpeg2", "hevc", "vp8"),
    "webm": ("vp8", "vp8_hidden", "vp9"),
    "avi": ("h264", "h264_b", "h264_open", "mpeg4", "mpeg4_b"),
    "flv": ("h264", "h264_b", "flv"),
    "ts": ("h264", "h264_b", "h264_open", "mpeg2", "hevc"),
    "gif": ("gif",),
}
ODDITIES = {"mp4": tuple(TIMES), "mkv": tuple(TIMES), "flv": tuple(TIMES)}
CORPUS = [
    (container, codec, timing)
    for container, codecs in CONTAINERS.items()
    for codec in codecs
    for timing in ODDITIES.get(container, ("24", "10", "variable"))
    if not (codec == "mpeg2" and timing in ("10", "15"))  # no such rates in MPEG-2
    and not (codec == "mpeg4_b" and timing == "variable")  # FFmpeg's encoder writes them with wrong times
    and not (container == "avi" and codec in ("h264_b", "h264_open") and timing == "variable")  # AVI cannot say these times
]


def write_timed(path: pathlib.Path, codec: str, options: dict[str, str], times: list[fractions.Fraction]) -> pathlib.Path:
    """Frames `drawn(0)`, `drawn(1)`… shown at `times`, in seconds."""
    rate = round(1 / (times[1] - times[0]))
    time_base = {".avi": fractions.Fraction(1, rate), ".gif": fractions.Fraction(1, 100)}.get(
        path.suffix, fractions.Fraction(1, 24 * 1000)
    )
    if codec in ("mpeg2video", "flv"):
        time_base = fractions.Fraction(1, rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(drawn(number), format="rgb24")
            if codec == "gif":
                frame = frame.reformat(format="rgb8")
            frame.pts, frame.time_base = round(time / time_base), time_base
            frame.duration = round(1 / (rate * time_base))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("container", "codec", "timing"), CORPUS, ids=["-".join(item) for item in CORPUS])
def test_the_frames_on_screen_at_the_times_asked(tmp_path, container, codec, timing):
    encoder, options = CODECS[codec]
    if encoder not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {encoder}")
    path = write_timed(tmp_path / f"a.{container}", encoder, options, TIMES[timing])
    times = [float(time - TIMES[timing][0]) for time in TIMES[timing]]
    end = times[-1] + times[-1] - times[-2]
    steps = np.diff([*times, end])
    for backend in BACKENDS:
        for spec in (FrameSpec(num_frames=7), FrameSpec(num_frames=NUM_FRAMES), FrameSpec(num_frames=None, fps=2.0)):
            clip = decode(path, spec, backend)
            numbers = shown_numbers(clip.frames)
            assert clip.total_num_frames == NUM_FRAMES
            assert numbers == list(clip.indices), (backend, clip.backend)
            assert clip.duration_s == pytest.approx(end, abs=0.06)
            assert spec.fps is None or len(numbers) == round(clip.duration_s * spec.fps)
            for at, number in enumerate(numbers):
                half = steps[number] / 2 + 0.006
                assert abs(clip.times_s[at] - times[number]) <= half
                asked = (2 * at + 1) / (2 * len(numbers)) * clip.duration_s
                assert times[number] - half <= asked <= times[number] + steps[number] + half


# Clocks


def packets(pts: list[int | None], dts: list[int | None]) -> Packets:
    return Packets(pts=pts, dts=dts, durations=[10] * len(pts), keyframes=[True] * len(pts))


@pytest.mark.parametrize("container", ["mpegts", "flv"])
def test_a_clock_that_starts_again_goes_on(container):
    """Two recordings of three frames, one behind the other in one file."""
    found = packets([0, 10, 20, 0, 10, 20], [0, 10, 20, 0, 10, 20]).frames(container, reorders=False, max_step=1000)
    assert found.shown is not None
    assert found.shown.tolist() == [0, 10, 20, 30, 40, 50]
    assert found.times is None, "two frames have each time, so nothing can be found by it"


def test_a_leap_is_a_new_clock_in_broadcasts_only():
    times: list[int | None] = [0, 10, 20, 9000, 9010, 9020]
    leaps = packets(times, times)
    broadcast = leaps.frames("mpegts", reorders=False, max_step=1000)
    assert broadcast.shown is not None
    assert broadcast.shown.tolist() == [0, 10, 20, 30, 40, 50]
    file = leaps.frames("matroska,webm", reorders=False, max_step=1000)
    assert file.shown is not None
    assert file.shown.tolist() == times


def test_frames_decoded_before_a_leap_and_shown_after_it_leap_too():
    """Decoded a frame early: the first frame of the new clock comes before the last one of the old."""
    pts: list[int | None] = [0, 20, 10, 9000, 30, 9020, 9010, 9030]
    dts: list[int | None] = [-10, 0, 10, 20, 30, 9000, 9010, 9020]
    broadcast = packets(pts, dts).frames("mpegts", reorders=True, max_step=1000)
    assert broadcast.shown is not None
    assert broadcast.shown.tolist() == list(range(0, 80, 10))
    again = packets([90, 110, 100, 0, 120, 20, 10, 30], [80, 90, 100, 110, 120, 0, 10, 20])
    restarted = again.frames("mpegts", reorders=True, max_step=1000)
    assert restarted.shown is not None
    assert restarted.shown.tolist() == list(range(90, 170, 10))


def test_a_broadcast_with_b_frames_and_a_leap(tmp_path):
    times = [time + (100 if number >= 18 else 0) for number, time in enumerate(EVEN_24)]
    path = write_timed(tmp_path / "a.ts", *CODECS["h264_b"], times)
    for backend in BACKENDS:
        clip = decode(path, FrameSpec(num_frames=NUM_FRAMES), backend)
        assert shown_numbers(clip.frames) == list(range(NUM_FRAMES))
        assert (clip.duration_s, clip.times) == (1.5, None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codec", ["h264", "h264_b", "vp8"])
def test_files_joined_end_to_end_go_on(tmp_path, codec, backend):
    path = write_timed(tmp_path / "a.mkv", *CODECS[codec], EVEN_24)
    path.write_bytes(path.read_bytes() * 2)
    clip = decode(path, FrameSpec(num_frames=2 * NUM_FRAMES), backend)
    assert shown_numbers(clip.frames) == [*range(NUM_FRAMES)] * 2
    assert clip.duration_s == pytest.approx(3.0, abs=0.05)
    assert clip.times_s == pytest.approx([index / 24 for index in range(2 * NUM_FRAMES)], abs=0.03)


def test_stills_in_a_broadcast_are_no_leaps():
    times: list[int | None] = [0, 5000, 10_000, 15_000]
    found = packets(times, times).frames("mpegts", reorders=False, max_step=1000)
    assert found.shown is not None
    assert found.shown.tolist() == times


def test_without_any_times_a_header_must_do():
    none: list[int | None] = [None, None]
    assert packets(none, none).frames("h264", reorders=True, max_step=1000).shown is None


@pytest.mark.parametrize(("keyframes", "closed"), [([1, 0, 0, 1, 0, 0], True), ([1, 0, 0, 0, 1, 0], False)])
def test_open_groups_are_seen_from_the_times(keyframes, closed):
    """Shown in the order 0 1 2 | 3 4 5, and decoded as 0 2 1 3 5 4: the frame decoded after 5 is shown before it."""
    times = np.array([0, 20, 10, 30, 50, 40])
    assert frames_of(times, np.full(6, 10), np.array(keyframes, bool)).closed is closed


def test_timing_by_hand():
    second = fractions.Fraction(1)
    even = timing(np.arange(4) * 2, second, 0.5, 2)
    assert (even.fps, even.duration_s, even.starts_s) == (0.5, 8.0, None)
    other = timing(np.arange(5) * 10, fractions.Fraction(1, 240), 48.0, 10)
    assert (other.fps, other.duration_s, other.starts_s) == (24.0, 5 / 24, None), "the header says twice the rate"
    uneven = timing(np.array([0, 1, 2, 12]), second, 1.0, 1)
    assert uneven.duration_s == 13.0
    assert uneven.fps == 4 / 13
    assert sampled(4, uneven, FrameSpec(num_frames=4)) == [1, 2, 2, 2], "at 1.625, 4.875, 8.125 and 11.375 s"
    assert uneven.times_s([1, 3]) == (1.0, 12.0)
    at_once = timing(np.array([7, 7]), second, 2.0, 0)
    assert (at_once.fps, at_once.duration_s) == (2.0, 1.0)
    assert timing(np.array([0, 1, 2, 12]), second, 1.0, 10_000).duration_s == 72.0, (
        "the last frame counts for a minute at most"
    )
