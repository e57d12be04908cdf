"""Sampling, decoding with both backends, every quarantine reason from a really broken file, and the frame cache."""

import hashlib
import os
import pathlib
import struct
import tracemalloc

import av
import numpy as np
import pytest
import safetensors.numpy
from conftest import real_videos, write_video
from hypothesis import example, given
from hypothesis import strategies as st

from vidalign.errors import DataError, VideoError
from vidalign.types import FrameSpec
from vidalign.video import decoding, frame_cache
from vidalign.video.clip import Clip
from vidalign.video.decoding import decode, decode_bytes, frame_indices
from vidalign.video.frame_cache import BLOCK_BYTES, PAGE_BYTES, FrameCache, load_clip
from vidalign.video.readers import target_size

BACKENDS = ("decord", "pyav")
NUM_FRAMES, FPS, SIDE = 24, 12, 64


def drawn_frames(num_frames: int = NUM_FRAMES) -> np.ndarray:
    """uint8 [F, 64, 64, 3]: frame i is a grey of its own level, so that a decoded frame tells its number."""
    levels = 20 + np.arange(num_frames) * (200 // num_frames)
    return np.broadcast_to(levels[:, None, None, None], (num_frames, SIDE, SIDE, 3)).astype(np.uint8)


def write_finely(path: pathlib.Path, frames: np.ndarray, codec: str = "libx264", muxer: dict | None = None) -> pathlib.Path:
    """A keyframe every 6 frames, and so many bits that a frame keeps its level."""
    fast = {"libx264": {"preset": "veryfast"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}
    options = {"g": "6", "b": "8M", **fast.get(codec, {})}
    return write_video(path, frames, codec, FPS, options=options, muxer=muxer)


def transcode(source: pathlib.Path, path: pathlib.Path, codec: str, num_frames: int = 30) -> pathlib.Path:
    with av.open(str(source)) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for _, frame in zip(range(num_frames), container.decode(video=0), strict=False)
        ]
    return write_finely(path, np.stack(frames), codec)


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Undo `drawn_frames`."""
    return [round((float(frame.mean()) - 20) / (200 // NUM_FRAMES)) for frame in frames]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("video")


@pytest.fixture(scope="module")
def good(folder) -> pathlib.Path:
    """H.264 in MP4 with the index in front, so that a cut leaves it whole."""
    return write_finely(folder / "good.mp4", drawn_frames(), muxer={"movflags": "faststart"})


# Sampling

counts = st.integers(1, 2000)


@given(total=counts, num_frames=st.integers(1, 300), fps=st.floats(0.5, 240))
def test_uniform_sampling_gives_the_asked_count_in_order(total, num_frames, fps):
    indices = frame_indices(total, fps, FrameSpec(num_frames=num_frames))
    assert len(indices) == num_frames
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < total
    if num_frames <= total:
        assert len(set(indices)) == num_frames
        assert max(np.diff([-1, *indices, total])) <= -(-total // num_frames) + 1, "no stretch of the video is left out"
    else:
        assert set(indices) == set(range(total)), "frames repeat, and none is left out"


@given(total=counts, rate=st.floats(0.1, 60), fps=st.floats(1, 120), max_frames=st.integers(2, 128))
def test_fps_sampling_keeps_the_rate_within_its_bounds(total, rate, fps, max_frames):
    indices = frame_indices(total, fps, FrameSpec(num_frames=None, fps=rate, max_frames=max_frames))
    assert len(set(indices)) == len(indices)
    assert indices == sorted(indices)
    assert min(2, total) <= len(indices) <= max_frames
    if min(2, total) < len(indices) < min(total, max_frames):
        assert abs(len(indices) - total / fps * rate) <= 0.5


def test_indices_by_hand():
    assert frame_indices(16, 8.0, FrameSpec(num_frames=4)) == [2, 6, 10, 14]
    assert frame_indices(2, 8.0, FrameSpec(num_frames=4)) == [0, 0, 1, 1]
    assert frame_indices(100, 25.0, FrameSpec(num_frames=None, fps=1.0)) == [12, 37, 62, 87]
    assert frame_indices(1000, 25.0, FrameSpec(num_frames=None, fps=1.0, max_frames=4)) == [125, 375, 625, 875]


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), max_pixels=st.integers(1, 10**6))
def test_max_pixels_bounds_the_area_and_never_enlarges(height, width, max_pixels):
    new_height, new_width = target_size(height, width, FrameSpec(max_pixels=max_pixels))
    assert 1 <= new_height <= height
    assert 1 <= new_width <= width
    if height * width <= max_pixels:
        assert (new_height, new_width) == (height, width)
    else:
        assert new_height * new_width <= max_pixels < (new_height + 1) * (new_width + 1), "no smaller than it has to be"
        assert new_height * new_width < height * width


def test_target_size_by_hand():
    assert target_size(720, 1280, FrameSpec()) == (720, 1280)
    assert target_size(720, 1280, FrameSpec(height=56, width=84)) == (56, 84)
    assert target_size(720, 1280, FrameSpec(max_pixels=360 * 640)) == (360, 640)
    budget = FrameSpec(max_pixels=360 * 640, total_pixels=180 * 320 * 16)
    assert [target_size(720, 1280, budget, count) for count in (1, 4, 16, 64)] == [
        (360, 640),
        (360, 640),
        (180, 320),
        (90, 160),
    ]
    assert target_size(720, 1280, FrameSpec(total_pixels=8), 16) == (1, 1)


# Whole videos


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_the_frames_are_those_that_were_asked_for(folder, name, codec, backend):
    path = write_finely(folder / name, drawn_frames(), codec)
    spec = FrameSpec(num_frames=8)
    clip = decode(path, spec, backend)
    assert frame_numbers(clip.frames) == list(clip.indices) == frame_indices(NUM_FRAMES, FPS, spec)
    assert (clip.total_num_frames, clip.fps, clip.duration_s) == (NUM_FRAMES, FPS, NUM_FRAMES / FPS)
    assert clip.backend == ("pyav" if codec == "mpeg4" else backend)
    assert clip.frames.shape == (8, SIDE, SIDE, 3)
    assert clip.frames.flags.c_contiguous


def test_repeats_where_the_video_is_shorter(good):
    clip = decode(good, FrameSpec(num_frames=2 * NUM_FRAMES))
    assert frame_numbers(clip.frames) == list(clip.indices) == [i // 2 for i in range(2 * NUM_FRAMES)]


@pytest.mark.parametrize("path", real_videos(), ids=lambda path: path.stem)
@pytest.mark.parametrize("spec", [FrameSpec(), FrameSpec(num_frames=None, fps=5.0, max_pixels=20_000)], ids=["8", "5fps"])
def test_backends_give_equal_frames_of_real_videos(path, spec):
    ours, theirs = (decode(path, spec, backend) for backend in BACKENDS)
    assert (ours.backend, theirs.backend) == BACKENDS
    assert ours.indices == theirs.indices
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    assert len({frame.tobytes() for frame in ours.frames}) == len(set(ours.indices)), "no frame stands in for another"


@pytest.mark.parametrize(
    ("name", "codec", "used"),
    [("b.mkv", "libx264", "decord"), ("b.avi", "mpeg4", "pyav"), ("b.webm", "libvpx-vp9", "decord")],
)
def test_backends_agree_on_real_content_in_other_containers(folder, name, codec, used):
    """MPEG-4 part 2 leaves the last bit of a pixel to the decoder, so that PyAV has it."""
    path = transcode(real_videos()[1], folder / name, codec)
    ours, theirs = (decode(path, FrameSpec(num_frames=30), backend) for backend in BACKENDS)
    assert ours.backend == used
    np.testing.assert_array_equal(ours.frames, theirs.frames)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_tag_turns_the_frames_upright(folder, good, degrees):
    data = bytearray(good.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16  # the 3x3 matrix of a version 0 track header
    assert struct.unpack(">9i", data[at : at + 36])[0] == 1 << 16
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data[at : at + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    spec = FrameSpec(num_frames=4)
    turned = [decode_bytes(bytes(data), spec, backend).frames for backend in BACKENDS]
    np.testing.assert_array_equal(turned[0], turned[1])
    np.testing.assert_array_equal(turned[0], np.rot90(decode(good, spec).frames, -degrees // 90, axes=(1, 2)))


def test_bytes_give_what_the_file_gives(good):
    for backend in BACKENDS:
        clip = decode_bytes(good.read_bytes(), FrameSpec(), backend)
        assert clip.backend == backend
        np.testing.assert_array_equal(clip.frames, decode(good, FrameSpec(), backend).frames)
    with pytest.raises(VideoError) as caught:
        decode_bytes(b"", FrameSpec())
    assert caught.value.reason == "zero_byte"


def test_metadata_is_what_vllm_and_transformers_take(good):
    from transformers.video_utils import VideoMetadata

    clip = decode(good, FrameSpec(num_frames=4))
    metadata = clip.metadata()
    assert metadata == {
        "total_num_frames": NUM_FRAMES,
        "fps": FPS,
        "duration": NUM_FRAMES / FPS,
        "frames_indices": [3, 9, 15, 21],
        "video_backend": "pyav",
        "do_sample_frames": False,
    }
    del metadata["do_sample_frames"]
    assert VideoMetadata(**metadata).timestamps == list(clip.times_s) == [0.25, 0.75, 1.25, 1.75]


def test_widths_that_decord_cannot_copy_are_decoded_by_pyav_as_the_clip_says(folder):
    """decord 0.6 fails where a row of pixels is padded in memory, as it is at widths of 24, 48 and 72."""
    path = write_finely(folder / "narrow.mp4", drawn_frames()[:, :, :48])
    clip = decode(path, FrameSpec(num_frames=4), "decord")
    assert clip.backend == clip.metadata()["video_backend"] == "pyav"
    assert frame_numbers(clip.frames) == [3, 9, 15, 21]


# Broken videos. Each maker writes one file and returns its path.


def cut(path: pathlib.Path, source: pathlib.Path, share: float = 0.6) -> pathlib.Path:
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def make_zero_byte(folder: pathlib.Path) -> pathlib.Path:
    (folder / "zero.mp4").touch()
    return folder / "zero.mp4"


def make_text(folder: pathlib.Path) -> pathlib.Path:
    (folder / "text.mp4").write_text("This is not a video.\n" * 200)
    return folder / "text.mp4"


def make_playlist(folder: pathlib.Path) -> pathlib.Path:
    """FFmpeg alone would follow it and play another file."""
    segment = write_finely(folder / "segment.ts", drawn_frames())
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{segment}\n#EXT-X-ENDLIST\n"
    (folder / "list.mp4").write_text(text)
    return folder / "list.mp4"


def make_audio_only(folder: pathlib.Path) -> pathlib.Path:
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder / "audio.mp4"


def make_folder(folder: pathlib.Path) -> pathlib.Path:
    (folder / "folder.mp4").mkdir()
    return folder / "folder.mp4"


def make_link_to_itself(folder: pathlib.Path) -> pathlib.Path:
    """Unreadable for root as well, whom permissions do not stop."""
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    return folder / "loop.mp4"


def make_no_permission(folder: pathlib.Path) -> pathlib.Path:
    if os.geteuid() == 0:
        pytest.skip("root may read everything; the link to itself covers the reason")
    path = write_finely(folder / "locked.mp4", drawn_frames())
    path.chmod(0)
    return path


def make_cut_after_index(folder: pathlib.Path) -> pathlib.Path:
    whole = write_finely(folder / "front.mp4", drawn_frames(), muxer={"movflags": "faststart"})
    return cut(folder / "cut_front.mp4", whole, 0.9)


def make_cut_before_index(folder: pathlib.Path) -> pathlib.Path:
    return cut(folder / "cut_back.mp4", write_finely(folder / "back.mp4", drawn_frames()))


def make_cut_matroska(folder: pathlib.Path) -> pathlib.Path:
    return cut(folder / "cut.mkv", transcode(real_videos()[1], folder / "whole.mkv", "libx264"))


def make_cut_webm(folder: pathlib.Path) -> pathlib.Path:
    return cut(folder / "cut.webm", transcode(real_videos()[1], folder / "whole.webm", "libvpx-vp9"))


def make_cut_avi(folder: pathlib.Path) -> pathlib.Path:
    return cut(folder / "cut.avi", transcode(real_videos()[1], folder / "whole.avi", "mpeg4"))


def make_holed(folder: pathlib.Path) -> pathlib.Path:
    """A whole index, a whole length, and zeros in the middle, as a broken download leaves them."""
    data = bytearray(real_videos()[1].read_bytes())
    data[len(data) // 3 : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - len(data) // 3)
    (folder / "holed.mp4").write_bytes(data)
    return folder / "holed.mp4"


def make_one_frame(folder: pathlib.Path) -> pathlib.Path:
    return write_finely(folder / "one.mp4", drawn_frames(1))


BROKEN = {
    make_zero_byte: ("zero_byte", "empty"),
    make_text: ("not_a_video", "not a video"),
    make_playlist: ("not_a_video", "not a video"),
    make_audio_only: ("no_video_stream", "streams: audio"),
    make_folder: ("unreadable", "folder"),
    make_link_to_itself: ("unreadable", "cannot be read"),
    make_no_permission: ("unreadable", "cannot be read"),
    make_cut_after_index: ("truncated", "cut"),
    make_cut_before_index: ("truncated", "index is missing"),
    make_cut_matroska: ("truncated", "promises 2.50 s"),
    make_cut_webm: ("truncated", "promises 2.50 s"),
    make_cut_avi: ("truncated", "cut"),
    make_holed: ("truncated", "cannot be decoded"),
    make_one_frame: ("too_few_frames", "has 1 frames, but video.min_frames is 2"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__[5:])
def test_broken_videos_name_their_reason(tmp_path, make, backend):
    path = make(tmp_path)
    reason, words = BROKEN[make]
    with pytest.raises(VideoError, match=words) as caught:
        decode(path, FrameSpec(), backend)
    assert caught.value.reason == reason
    assert str(path) in caught.value.message


def test_missing(tmp_path):
    for call in (lambda path: decode(path, FrameSpec()), decoding.content_hash):
        with pytest.raises(VideoError, match="no file at") as caught:
            call(tmp_path / "none.mp4")
        assert caught.value.reason == "missing"


@given(share=st.floats(0.05, 0.999))
@example(share=0.9643)  # four frames of 24 are missing, and what is left decodes well
def test_no_cut_of_an_indexed_video_passes(good, share):
    """Wherever a file whose index is whole or known is cut, it is never decoded."""
    data = good.read_bytes()
    with pytest.raises(VideoError) as caught:
        decode_bytes(data[: int(len(data) * share)], FrameSpec())
    assert caught.value.reason == "truncated"


def test_what_decord_cannot_open_is_decoded_by_pyav_as_the_clip_says(folder):
    if "libsvtav1" not in av.codecs_available and "libaom-av1" not in av.codecs_available:
        pytest.skip("this FFmpeg writes no AV1")
    codec = "libsvtav1" if "libsvtav1" in av.codecs_available else "libaom-av1"
    path = write_finely(folder / "av1.mp4", np.repeat(np.repeat(drawn_frames(), 2, axis=1), 2, axis=2), codec)
    clip = decode(path, FrameSpec(num_frames=4), "decord")
    assert clip.backend == clip.metadata()["video_backend"] == "pyav"
    assert frame_numbers(clip.frames) == [3, 9, 15, 21]


# Frame cache


def test_content_hash_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert decoding.content_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_cache_gives_back_what_was_put_under_its_own_key_only(tmp_path, good):
    cache, spec = FrameCache(tmp_path), FrameSpec(num_frames=5)
    clip, digest = decode(good, spec), decoding.content_hash(good)
    assert not cache.holds(digest, spec)
    path = cache.put(digest, spec, clip)
    assert path == cache.path(digest, spec)
    assert cache.holds(digest, spec)
    stored = load_clip(path)
    np.testing.assert_array_equal(stored.frames, clip.frames)
    assert stored.metadata() == clip.metadata()
    stored.frames[:] = 0
    np.testing.assert_array_equal(load_clip(path).frames, clip.frames, err_msg="frames are the reader's own")
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(path)["frames"], clip.frames, err_msg="anyone can read the file"
    )
    assert not cache.holds(digest, FrameSpec(num_frames=6))
    assert not cache.holds("0" * 64, spec)
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_cache_files_keep_their_names_and_bytes(tmp_path):
    """A name may change only together with what is decoded, and the bytes of finished runs stay readable."""
    frames = (np.arange(2 * 3 * 5 * 3) % 251).astype(np.uint8).reshape(2, 3, 5, 3)
    clip = Clip(frames=frames, fps=4.0, total_num_frames=10, duration_s=2.5, indices=(2, 7))
    path = FrameCache(tmp_path).put("ab" * 32, FrameSpec(num_frames=2), clip)
    assert path.relative_to(tmp_path).as_posix() == f"ab/{'ab' * 32}.30deaadb670b3bc0.t3.safetensors"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == "1e4deff4928c3190bde3511622c54017593de2f70339a4dbe1b5c5de6c079942"
    back = load_clip(path)
    assert (back.duration_s, back.times_s, back.metadata()) == (2.5, (0.5, 1.75), clip.metadata())


def test_frames_decoded_by_earlier_rules_are_not_used(tmp_path, good, monkeypatch):
    cache, spec, digest = FrameCache(tmp_path), FrameSpec(num_frames=2), "ab" * 32
    monkeypatch.setattr(frame_cache, "RULES", "t1")
    earlier = cache.put(digest, spec, decode(good, spec))
    assert cache.holds(digest, spec)
    monkeypatch.undo()
    assert not cache.holds(digest, spec)
    assert load_clip(earlier).indices == decode(good, spec).indices, "a run that names the file still reads it"


def test_frames_are_never_copied(tmp_path):
    cache, spec = FrameCache(tmp_path), FrameSpec(num_frames=64)
    frames = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), np.uint8)
    clip = Clip(frames=frames, fps=25.0, total_num_frames=64, duration_s=2.56, indices=tuple(range(64)))

    def peak_bytes(call) -> int:
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(lambda: cache.put("ab" * 32, spec, clip)) < frames.nbytes / 4
    assert peak_bytes(lambda: cache.holds("ab" * 32, spec)) < frames.nbytes / 4
    assert peak_bytes(lambda: load_clip(cache.path("ab" * 32, spec))) < 1.25 * frames.nbytes


def damages(data: bytes, num_pixels: int) -> dict[str, bytes]:
    def flipped(at: int) -> bytes:
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    start = len(data) - num_pixels
    at, then, end = (start + number * PAGE_BYTES for number in (2, 3, 4))
    return {
        "empty": b"",
        "torn": data[: len(data) // 2],
        "one byte short": data[:-1],
        "longer": data + b"x",
        "text": b"x" * len(data),
        "zeros": bytes(len(data)),
        "zeroed page": data[:at] + bytes(PAGE_BYTES) + data[then:],
        "exchanged pages": data[:at] + data[then:end] + data[at:then] + data[end:],
        "a bit of a page": flipped(at + 99),
        "a bit of a fact": flipped(data.index(b"fps") + len(b'fps\\": ')),
        "a bit behind the last whole page": flipped(len(data) - 1),
    }


def test_damaged_cache_file_is_never_served(tmp_path):
    cache, spec = FrameCache(tmp_path), FrameSpec(num_frames=5)
    frames = np.random.default_rng(0).integers(0, 256, (5, 211, 223, 3), np.uint8)
    assert frames.nbytes > BLOCK_BYTES
    assert frames.nbytes % PAGE_BYTES
    clip = Clip(frames=frames, fps=25.0, total_num_frames=50, duration_s=2.0, indices=(5, 15, 25, 35, 45))
    path = cache.put("ab" * 32, spec, clip)
    for how, data in damages(path.read_bytes(), frames.nbytes).items():
        path.write_bytes(data)
        assert not cache.holds("ab" * 32, spec), how
        with pytest.raises(DataError, match="decode the video again"):
            load_clip(path)
    cache.put("ab" * 32, spec, clip)
    assert cache.holds("ab" * 32, spec)


def test_no_cache_file_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="no decoded frames at"):
        load_clip(tmp_path / "none.safetensors")
