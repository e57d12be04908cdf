"""Seeking gives exactly the frames of decoding in order, in every kind of stream; the index of an MP4 says what its packets say;
and sampling at keyframes."""

import io
import pathlib
from collections.abc import Callable, Iterator

import av
import numpy as np
import pytest
from conftest import write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vidalign.config.loading import parse_config
from vidalign.errors import ConfigError
from vidalign.types import FrameSpec
from vidalign.video import mp4, probing, readers
from vidalign.video.decoding import content_hash, decode, decode_bytes, frame_indices, snapped
from vidalign.video.frame_cache import FrameCache

NUM_FRAMES, FPS = 90, 15


def moving_scene() -> Iterator[np.ndarray]:
    """A textured picture that moves by some pixels a frame, with a frame between any two that differs from both."""
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 256, (40, 60, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
    for number in range(NUM_FRAMES):
        picture = scene[number : number + 64, 1 + number : 97 + number].copy()
        picture[:8, :8] = 2 * number
        yield picture


def x264(params: str) -> dict[str, str]:
    return {"preset": "medium", "x264-params": params}


STREAMS: dict[str, tuple[str, dict[str, str]]] = {
    "b_pyramid.mp4": ("libx264", x264("keyint=20:bframes=4:b-pyramid=normal:scenecut=0")),
    "open_gop.mp4": ("libx264", x264("keyint=20:bframes=3:open-gop=1:scenecut=0")),
    "open_gop.mkv": ("libx264", x264("keyint=20:bframes=3:open-gop=1:scenecut=0")),
    "intra_refresh.mp4": ("libx264", x264("keyint=20:intra-refresh=1:bframes=0")),
    "one_gop.mov": ("libx264", x264("keyint=300:bframes=2")),
    "all_keyframes.mp4": ("libx264", x264("keyint=1")),
    "a.ts": ("libx264", x264("keyint=20:bframes=3")),
    "x265.mp4": ("libx265", {"preset": "fast", "x265-params": "keyint=20:bframes=3:open-gop=1:log-level=none"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "20"}),
    "mpeg2.mkv": ("mpeg2video", {"g": "15", "bf": "2", "b": "4M"}),
    "mpeg4.mp4": ("mpeg4", {"g": "15", "bf": "2", "b": "4M"}),
    "mpeg4.avi": ("mpeg4", {"g": "15", "b": "4M"}),
}
FALL_BACK = {"intra_refresh.mp4", "a.ts"}  # no keyframe to start at, and no index to seek by


@pytest.fixture(scope="module")
def video_of(tmp_path_factory) -> Callable[[str], pathlib.Path]:
    folder = tmp_path_factory.mktemp("seeking")

    def make(name: str) -> pathlib.Path:
        codec, options = STREAMS[name]
        if codec not in av.codecs_available:
            pytest.skip(f"this FFmpeg has no {codec}")
        path = folder / name
        return path if path.exists() else write_video(path, moving_scene(), codec, FPS, options=options)

    return make


def probe(path: pathlib.Path) -> probing.Probe:
    of = (str(path), path.read_bytes()[:16], lambda: str(path))
    with probing.open_whole(*of) as container:
        return probing.probe(*of, container)


def in_order(path: pathlib.Path) -> np.ndarray:
    """Every frame, without any of our code."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def by_seeking(path: pathlib.Path, wanted: list[int], times: probing.FrameTimes) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return np.stack([pixels for pixels, _ in readers.by_seeking(container, stream, wanted, times, FrameSpec())])


@pytest.mark.parametrize("name", sorted(STREAMS.keys() - FALL_BACK))
def test_seeking_gives_the_frames_of_decoding_in_order(video_of, name):
    path, rng = video_of(name), np.random.default_rng(1)
    times, frames = probe(path).times, in_order(path)
    assert len(frames) == NUM_FRAMES
    assert times is not None
    every = list(range(int(times.keyframes[0]), NUM_FRAMES))
    some = [sorted(rng.choice(every, count, replace=False).tolist()) for count in (1, 1, 1, 2, 3, 5, 8, 20, 40)]
    for wanted in [every, [every[0]], [every[-1]], times.keyframes.tolist(), *some]:
        np.testing.assert_array_equal(by_seeking(path, wanted, times), frames[wanted])


@pytest.mark.parametrize("name", STREAMS)
def test_decode_gives_the_frames_of_decoding_in_order(video_of, name):
    path, spec = video_of(name), FrameSpec(num_frames=11)
    for clip in (decode(path, spec, "pyav"), decode_bytes(path.read_bytes(), spec, "pyav")):
        assert list(clip.indices) == frame_indices(NUM_FRAMES, FPS, spec)
        np.testing.assert_array_equal(clip.frames, in_order(path)[list(clip.indices)])


def test_frames_wrongly_marked_as_keyframes_are_not_trusted(video_of):
    """Intra refresh marks frames as keyframes that are whole only some frames later."""
    path = video_of("intra_refresh.mp4")
    times = probe(path).times
    assert times is not None
    assert len(times.keyframes) > 1
    with pytest.raises(readers.NotAsExpectedError):
        by_seeking(path, [50], times)


def test_seeking_to_wrong_times_is_noticed(video_of):
    path = video_of("b_pyramid.mp4")
    times = probe(path).times
    assert times is not None
    wrong = probing.FrameTimes(pts=times.pts + 7, keyframes=times.keyframes)
    with pytest.raises(readers.NotAsExpectedError):
        by_seeking(path, [50], wrong)


def test_decord2_is_not_trusted():
    assert readers.is_trusted("0.6.0")
    assert not readers.is_trusted("3.4.0")


# The index of an MP4


@pytest.mark.parametrize("name", [name for name in STREAMS if name.endswith((".mp4", ".mov"))])
def test_index_says_what_the_packets_say(video_of, name, monkeypatch):
    path = video_of(name)
    with open(path, "rb") as file:
        assert mp4.read_index(file, 1) is not None
        assert mp4.read_index(file, 2) is None
    ours = probe(path)
    monkeypatch.setattr(mp4, "read_index", lambda file, track_id: None)
    packets = probe(path)
    assert (ours.num_frames, ours.fps) == (packets.num_frames, packets.fps) == (NUM_FRAMES, FPS)
    assert ours.times is not None
    assert packets.times is not None
    np.testing.assert_array_equal(ours.times.pts, packets.times.pts)
    np.testing.assert_array_equal(ours.times.keyframes, packets.times.keyframes)


def test_fragmented_files_are_read_by_their_packets(tmp_path):
    codec, options = STREAMS["b_pyramid.mp4"]
    muxer = {"movflags": "frag_keyframe+empty_moov"}
    path = write_video(tmp_path / "f.mp4", moving_scene(), codec, FPS, options=options, muxer=muxer)
    with open(path, "rb") as file:
        assert mp4.read_index(file, 1) is None
    spec = FrameSpec(num_frames=7)
    np.testing.assert_array_equal(decode(path, spec, "pyav").frames, in_order(path)[frame_indices(NUM_FRAMES, FPS, spec)])


def patched(path: pathlib.Path, target: pathlib.Path, box: bytes, at: int, value: int) -> pathlib.Path:
    """A copy with one big-endian number of a box replaced; `at` counts from the end of the box's type."""
    data = bytearray(path.read_bytes())
    assert data.count(box) == 1
    place = data.index(box) + 4 + at
    data[place : place + 4] = value.to_bytes(4, "big")
    target.write_bytes(data)
    return target


def test_edit_list_that_hides_frames(video_of, tmp_path):
    """An edit that begins inside a group of pictures: FFmpeg hides the frames before it, and so do we."""
    path = patched(video_of("b_pyramid.mp4"), tmp_path / "edit.mp4", b"elst", 8, 4000)  # of 6000 ms
    path = patched(path, path, b"elst", 12, 30 * (15360 // FPS))
    with open(path, "rb") as file:
        assert mp4.read_index(file, 1) is None
    clip, frames = decode(path, FrameSpec(num_frames=9), "pyav"), in_order(path)
    assert clip.total_num_frames == len(frames) < NUM_FRAMES
    np.testing.assert_array_equal(clip.frames, frames[list(clip.indices)])


@pytest.mark.parametrize(
    ("box", "at", "value"),
    [
        (b"stts", 8, NUM_FRAMES + 1),  # another number of frames
        (b"ctts", 4, 10**6),  # a table longer than its box
        (b"stss", 8, NUM_FRAMES + 1),  # a keyframe behind the last frame
        (b"stsz", 12, 2**31),  # a frame that ends beyond the file
        (b"stsc", 12, 7),  # chunks of another number of frames
    ],
)
def test_index_that_contradicts_itself_is_not_trusted(video_of, tmp_path, box, at, value):
    path = patched(video_of("b_pyramid.mp4"), tmp_path / "patched.mp4", box, at, value)
    with open(path, "rb") as file:
        assert mp4.read_index(file, 1) is None


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_index_is_read_as_an_index_or_not_at_all(video_of, data):
    whole = bytearray(video_of("b_pyramid.mp4").read_bytes())
    begin = whole.index(b"moov")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(begin + 4, len(whole) - 4))
        whole[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    index = mp4.read_index(io.BytesIO(whole), 1)
    if index is not None:
        assert index.times.shape == index.keyframes.shape
        assert (index.times.dtype, index.keyframes.dtype) == (np.int64, np.bool_)
        assert 0 < len(index.times) < len(whole)


# Sampling at keyframes


def test_snapped_by_hand():
    keyframes = np.array([0, 10, 20, 30])
    assert snapped([5, 15, 25, 35], keyframes) == [0, 10, 20, 30]
    assert snapped([10, 39], keyframes) == [10, 30]
    assert snapped([5, 5, 25, 25], keyframes) == [0, 0, 20, 20], "frames that repeat already may repeat"
    assert snapped([5, 6, 25], keyframes) == [5, 6, 25], "two frames would become one"
    assert snapped([5, 15], np.array([7])) == [5, 15], "no keyframe before the first frame"
    assert snapped([5, 15], np.array([], np.int64)) == [5, 15]


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_snapping_takes_keyframes_only(video_of, backend):
    path = video_of("b_pyramid.mp4")  # keyframes at 0, 20, 40, 60, 80
    clip = decode(path, FrameSpec(num_frames=4, snap_to_keyframes=True), backend)
    assert clip.indices == (0, 20, 40, 60)
    assert decode(path, FrameSpec(num_frames=4), backend).indices == (11, 33, 56, 78)
    np.testing.assert_array_equal(clip.frames, in_order(path)[[0, 20, 40, 60]])


def test_too_few_keyframes_are_never_fewer_frames(video_of):
    for name, count in (("b_pyramid.mp4", 6), ("one_gop.mov", 2)):
        spec = FrameSpec(num_frames=count, snap_to_keyframes=True)
        assert list(decode(video_of(name), spec).indices) == frame_indices(NUM_FRAMES, FPS, spec)


def test_snapping_is_part_of_the_cache_key_and_off_by_default(video_of, tmp_path):
    path, snap = video_of("b_pyramid.mp4"), FrameSpec(num_frames=4, snap_to_keyframes=True)
    exact = FrameSpec(num_frames=4)
    assert not exact.snap_to_keyframes
    assert snap.key() != exact.key()
    assert FrameSpec.from_row(snap.to_row()) == snap
    assert FrameSpec.from_row(exact.to_row()) == exact
    cache = FrameCache(tmp_path)
    cache.put(content_hash(path), snap, decode(path, snap))
    assert not cache.holds(content_hash(path), exact)


def test_the_endpoint_snaps_as_training_does(video_of):
    from serving.frames import FrameSpecLoader
    from serving.video_loader import media_io_kwargs

    path, spec = video_of("b_pyramid.mp4"), FrameSpec(num_frames=4, snap_to_keyframes=True)
    options = media_io_kwargs(spec)["video"]
    del options["video_backend"]
    frames, metadata = FrameSpecLoader().load_bytes(path.read_bytes(), **options)
    assert metadata["frames_indices"] == [0, 20, 40, 60]
    np.testing.assert_array_equal(frames, decode(path, spec).frames)


def test_config_passes_it_on():
    raw = {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t.jsonl"}}
    assert parse_config(raw, ["video.snap_to_keyframes=true"]).video.frame_spec().snap_to_keyframes
    with pytest.raises(ConfigError, match="snap_to_keyframes"):
        parse_config(raw, ["video.snap_to_keyframes=maybe"])
