"""Parts of videos, frames in files of their own, and images: which frames come out, when they are shown, and how they are kept."""

from __future__ import annotations

import pathlib

import numpy as np
import PIL.Image
import pytest
from test_video_times import drawn, shown_numbers

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video import stills, visuals
from vidalign.video.decode_child import ChildDecoder
from vidalign.video.decoding import decode, decode_bytes
from vidalign.video.frame_cache import load_clip
from vidalign.video.naming import Visual, name_of
from vidalign.video.timing import Timing, part_of

VIDEOS = pathlib.Path(__file__).parent / "videos"
BASE, VFR = (
    VIDEOS / "base.mp4",
    VIDEOS / "vfr.mkv",
)  # 48 frames: 2 s at 24 a second; 13 s, the first of them with 24, and then two a second
EIGHT = FrameSpec(num_frames=8)


# Parts


@pytest.mark.parametrize("backend", ["pyav", "decord"])
def test_a_part_is_sampled_as_if_it_were_the_video(backend):
    clip = decode(BASE, FrameSpec(num_frames=4), backend, start_s=0.5, end_s=1.5)
    assert shown_numbers(clip.frames) == [15, 21, 27, 33], "the middles of four parts of frames 12 to 35"
    assert clip.indices == (3, 9, 15, 21), "counted from the first frame of the part"
    assert (clip.total_num_frames, clip.duration_s, clip.fps) == (24, 1.0, 24.0)
    assert clip.metadata()["frames_indices"] == [3, 9, 15, 21]
    by_rate = decode(BASE, FrameSpec(num_frames=None, fps=8.0), backend, start_s=1.0)
    assert shown_numbers(by_rate.frames) == [25, 28, 31, 34, 37, 40, 43, 46]
    whole = decode(BASE, EIGHT, backend)
    assert decode(BASE, EIGHT, backend, end_s=2.0).times_s == whole.times_s
    assert np.array_equal(decode(BASE, EIGHT, backend, end_s=2.0).frames, whole.frames)


def test_a_part_between_two_frames_begins_with_the_one_on_screen():
    part = part_of("v", 48, Timing(fps=24.0, duration_s=2.0), 0.99, 1.01)
    assert (part.first, part.count) == (23, 2)
    assert part_of("v", 48, Timing(fps=24.0, duration_s=2.0), 0.5, 0.51).count == 1
    assert part_of("v", 48, Timing(fps=24.0, duration_s=2.0), 1.5, 2.9).count == 12, "an end of up to a second too late"
    ntsc = Timing(fps=30000 / 1001, duration_s=300 * 1001 / 30000)
    assert part_of("v", 300, ntsc, 2.002, 4.004).first == 60, "the frame that is shown from exactly there"
    assert part_of("v", 300, ntsc, 2.002, 4.004).count == 60


def test_a_part_of_a_variable_frame_rate_counts_from_its_start():
    clip = decode(VFR, FrameSpec(num_frames=4), start_s=3.0, end_s=7.0)
    assert shown_numbers(clip.frames) == [29, 31, 33, 35], "at 3.5, 4.5, 5.5 and 6.5 s of the video"
    assert clip.times_s == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=1e-3)
    assert clip.duration_s == pytest.approx(4.0)
    still = decode(VFR, FrameSpec(num_frames=2, min_frames=1), start_s=3.1, end_s=3.3)
    assert shown_numbers(still.frames) == [28, 28], "on screen from 3 s"
    assert still.times_s == (0.0, 0.0)
    assert still.duration_s == pytest.approx(0.2)


def test_keyframes_of_a_part_are_those_within_it():
    spec = FrameSpec(num_frames=2, snap_to_keyframes=True)
    clip = decode(BASE, spec, start_s=0.5, end_s=1.5)
    assert min(shown_numbers(clip.frames)) >= 12


@pytest.mark.parametrize(
    ("start_s", "end_s", "reason", "says"),
    [
        (2.0, None, "out_of_bounds", "is 2.00 s long, and its clip begins at 2 s; correct the clip, or leave the row out"),
        (5.0, 6.0, "out_of_bounds", "begins at 5 s"),
        (1.0, 3.5, "out_of_bounds", "ends at 3.5 s"),
        (1.0, 1.01, "too_few_frames", "has 1 frames in its clip, but video.min_frames is 2"),
    ],
)
def test_bounds_outside_of_the_video(start_s, end_s, reason, says):
    with pytest.raises(VideoError) as caught:
        decode(BASE, EIGHT, start_s=start_s, end_s=end_s)
    assert caught.value.reason == reason
    assert says in caught.value.message


def test_bytes_have_parts_too():
    whole = decode(BASE, EIGHT, start_s=0.25, end_s=1.0)
    assert np.array_equal(decode_bytes(BASE.read_bytes(), EIGHT, start_s=0.25, end_s=1.0).frames, whole.frames)


# Frames in files


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> pathlib.Path:
    """48 frames of 24 a second, whose names sort wrongly as texts, and a file that is no frame."""
    folder = tmp_path_factory.mktemp("frames") / "a #1"
    folder.mkdir()
    for number in range(48):
        PIL.Image.fromarray(drawn(number)).save(folder / f"frame_{number}.png")
    (folder / "notes.txt").write_text("no frame")
    (folder / ".frame_0.png").write_bytes(b"hidden")
    return folder


def folder_name(folder: pathlib.Path, fps: float = 24, **bounds: float) -> str:
    return name_of(Visual(kind="folder", uris=(folder.as_uri(),), fps=fps, **bounds))


@pytest.mark.parametrize("spec", [EIGHT, FrameSpec(num_frames=None, fps=4.0), FrameSpec(num_frames=60, max_pixels=5000)])
@pytest.mark.parametrize("bounds", [{}, {"start_s": 0.5, "end_s": 1.5}])
def test_a_folder_is_sampled_as_the_video_of_its_frames(frames, spec, bounds):
    clip = visuals.decode(folder_name(frames, **bounds), spec)
    video = decode(BASE, spec, **bounds)
    assert shown_numbers(clip.frames) == shown_numbers(video.frames)
    assert (clip.indices, clip.times_s, clip.duration_s) == (video.indices, video.times_s, video.duration_s)
    assert (clip.total_num_frames, clip.fps) == (video.total_num_frames, video.fps)


def test_a_list_keeps_its_order(frames):
    uris = tuple((frames / f"frame_{number}.png").as_uri() for number in (30, 3, 20))
    clip = visuals.decode(name_of(Visual(kind="list", uris=uris, fps=0.5)), FrameSpec(num_frames=3))
    assert shown_numbers(clip.frames) == [30, 3, 20]
    assert clip.times_s == (0.0, 2.0, 4.0)


def test_frames_are_upright_of_one_size_and_opaque(tmp_path):
    shown = drawn(5)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    PIL.Image.fromarray(np.rot90(shown)).save(tmp_path / "1.png", exif=exif)
    PIL.Image.fromarray(shown).resize((80, 48)).save(tmp_path / "2.png")
    clear = np.dstack([shown, np.zeros(shown.shape[:2], np.uint8)])
    PIL.Image.fromarray(clear).save(tmp_path / "3.png")
    PIL.Image.fromarray(shown[..., 0].astype(np.uint16) * 257).save(tmp_path / "4.png")
    PIL.Image.fromarray(shown).quantize(64).save(tmp_path / "5.gif")
    first, small, white, deep = visuals.decode(folder_name(tmp_path), FrameSpec(num_frames=4)).frames
    assert np.array_equal(first, shown)
    assert shown_numbers(small[None]) == [5], "scaled to the first one's size"
    assert (white == 255).all()
    assert np.array_equal(deep, shown[..., :1].repeat(3, axis=2))
    image = stills.decode_image("1", stills.from_file(str(tmp_path / "1.png")), FrameSpec(max_pixels=4000))
    assert image.frames.shape == (1, 48, 81, 3)


@pytest.mark.parametrize("pixels", [np.full((8, 8), 0.5, np.float32), np.full((8, 8), 100, np.int32)], ids=["float", "int"])
def test_pixels_of_32_bits_are_not_shown_as_black(tmp_path, pixels):
    PIL.Image.fromarray(pixels).save(tmp_path / "a.tiff")
    with pytest.raises(VideoError, match="pixels of 32 bits, which do not say") as caught:
        visuals.decode(f"{(tmp_path / 'a.tiff').as_uri()}#image", FrameSpec())
    assert caught.value.reason == "not_an_image"


def test_hashes_of_frames_depend_on_bytes_order_rate_and_bounds(frames, tmp_path):
    def key(name: str) -> str:
        with visuals.opened(name) as local:
            return local.content_hash()

    uris = [(frames / f"frame_{number}.png").as_uri() for number in range(3)]
    listed = [name_of(Visual(kind="list", uris=tuple(order), fps=2)) for order in (uris, uris[::-1])]
    names = [*listed, folder_name(frames), folder_name(frames, 2), folder_name(frames, start_s=1.0), str(BASE)]
    names += [f"{BASE.as_uri()}#t=0,1", f"{BASE.as_uri()}#t=0,1.5", f"{(frames / 'frame_0.png').as_uri()}#image"]
    assert len({key(name) for name in names}) == len(names)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes((frames / f"frame_{number}.png").read_bytes())
    assert key(listed[0]) == key(
        name_of(Visual(kind="list", uris=tuple(f.as_uri() for f in sorted(tmp_path.iterdir())), fps=2))
    )


def damage(folder: pathlib.Path, how: str) -> None:
    file = sorted(folder.iterdir())[1]
    data = file.read_bytes()
    file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"no image at all"}[how])


@pytest.mark.parametrize(("how", "reason"), [("cut", "truncated"), ("empty", "zero_byte"), ("text", "not_an_image")])
def test_a_broken_frame_is_named(tmp_path, how, reason):
    for number in range(3):
        PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    damage(tmp_path, how)
    with pytest.raises(VideoError, match=r"1\.png") as caught:
        visuals.decode(folder_name(tmp_path), FrameSpec(num_frames=3))
    assert caught.value.reason == reason


def hash_and_decode(name: str) -> None:
    with visuals.opened(name) as local:
        local.content_hash()
        local.decode(EIGHT)


def test_folders_that_are_none(tmp_path, frames):
    (tmp_path / "empty").mkdir()
    for name, reason in [
        (folder_name(tmp_path / "none"), "missing"),
        (folder_name(tmp_path / "empty"), "too_few_frames"),
        (folder_name(frames / "notes.txt"), "unreadable"),
        ("s3://b/frames#fps=2", "unreadable"),
        (str(frames), "unreadable"),
        (folder_name(frames, start_s=9.0), "out_of_bounds"),
        (f"{(frames / 'none.png').as_uri()}#image", "missing"),
    ]:
        with pytest.raises(VideoError) as caught:
            hash_and_decode(name)
        assert caught.value.reason == reason, name
    with pytest.raises(VideoError, match="max_pixels_decoded"):
        visuals.decode(f"{(frames / 'frame_0.png').as_uri()}#image", FrameSpec(max_pixels_decoded=100))


def test_the_cache_keeps_every_shape_apart(tmp_path, frames):
    names = [str(BASE), f"{BASE.as_uri()}#t=0.5,1.5", folder_name(frames), f"{(frames / 'frame_7.png').as_uri()}#image"]
    child = ChildDecoder(FrameSpec(num_frames=4), str(tmp_path))
    try:
        decoded = [child.decode(name) for name in names * 2]
    finally:
        child.close()
    assert [row.video for row in decoded] == names * 2
    assert len({row.frames_path for row in decoded}) == len(names)
    shown = [shown_numbers(load_clip(row.frames_path).frames) for row in decoded[: len(names)]]
    assert shown == [[6, 18, 30, 42], [15, 21, 27, 33], [6, 18, 30, 42], [7]]
