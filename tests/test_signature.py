"""Copies are recognised by what their frames show; other videos of the same scene are not taken for copies."""

import itertools
import json
import os
import pathlib
import time

import numpy as np
import pytest
from conftest import real_videos, write_video
from PIL import Image

from pipelines.cli import main
from pipelines.stages.lookalikes import lookalike_warning
from vidalign.data import decodable
from vidalign.data.validate import validate
from vidalign.errors import ClusterError
from vidalign.types import Example, FrameSpec
from vidalign.video.decoding import decode
from vidalign.video.frame_cache import FrameCache, load_clip, load_signature
from vidalign.video.signature import SHAPE, Signatures, packed, signature, unpacked

SPEC = FrameSpec(num_frames=8, max_pixels=96 * 96)


def frames_of(path: pathlib.Path, count: int = 96) -> list[np.ndarray]:
    return [
        frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]
        for frame in decode(path, FrameSpec(num_frames=count, max_pixels=160 * 120)).frames
    ]


def resized(frames, height: int, width: int) -> list[np.ndarray]:
    return [np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames]


def moving_square(step: int, colour=(230, 40, 40), start: int = 4, size: int = 64) -> list[np.ndarray]:
    """A square that moves over one and the same background."""
    background = np.add.outer(np.arange(size), 2 * np.arange(size))[..., None].repeat(3, 2).astype(np.uint8)
    frames = []
    for number in range(16):
        frame = background.copy()
        left = (start + step * number) % (size - 12)
        frame[24:36, left : left + 12] = colour
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def real():
    return {path.stem: frames_of(path) for path in real_videos() if path.stem in ("bikes", "carphone_pristine")}


def made_of(path: pathlib.Path, frames, **how) -> np.ndarray:
    return signature(decode(write_video(path, frames, **how), SPEC).frames)


def is_copy(first: np.ndarray, second: np.ndarray) -> bool:
    return list(Signatures.of([first]).alike(Signatures.of([second]))) == [(0, 0)]


def test_reencoded_and_resized_copies_are_found(tmp_path, real):
    for name, frames in real.items():
        height, width = (side // 4 * 2 for side in frames[0].shape[:2])
        original = made_of(tmp_path / "a.mp4", frames, codec="libx264", fps=24)
        for number, copy in enumerate(
            (
                made_of(tmp_path / "b.mp4", frames, codec="libx264", fps=24, options={"crf": "36"}),
                made_of(tmp_path / "c.avi", resized(frames, height, width), fps=24, options={"b": "120000"}),
                made_of(tmp_path / "d.mp4", resized(frames, height * 3, width), fps=24),
                made_of(tmp_path / "e.mp4", frames[::2], fps=12),
                made_of(tmp_path / "f.mp4", [(0.8 * frame + 15).astype(np.uint8) for frame in frames], fps=24),
            )
        ):
            assert is_copy(original, copy), (name, number)


def test_the_distorted_copy_that_others_published_is_found():
    pristine, distorted = (decode(path, SPEC).frames for path in real_videos() if "carphone" in path.stem)
    assert is_copy(signature(pristine), signature(distorted))


def test_other_videos_of_the_same_scene_are_not(tmp_path, real):
    for name, frames in real.items():
        halves = [made_of(tmp_path / f"{number}.mp4", part) for number, part in enumerate((frames[:48], frames[48:]))]
        assert not is_copy(*halves), name
    squares = {
        "right": moving_square(3),
        "left": moving_square(-3),
        "slow": moving_square(1),
        "blue": moving_square(3, colour=(40, 40, 230)),
        "still": moving_square(0),
    }
    made = {name: made_of(tmp_path / f"{name}.mp4", frames) for name, frames in squares.items()}
    for first, second in itertools.combinations(made, 2):
        assert not is_copy(made[first], made[second]), (first, second)
    assert is_copy(made["still"], made_of(tmp_path / "still.avi", moving_square(0), options={"b": "90000"}))


def test_empty_pictures_and_small_frames():
    black = np.zeros((4, 20, 30, 3), np.uint8)
    assert signature(black).shape == SHAPE
    assert not is_copy(signature(black), signature(black)), "there is nothing to compare"
    assert signature(np.full((1, 3, 200, 3), 7, np.uint8)).tolist() == np.full(SHAPE, 7).tolist()
    assert list(Signatures.of([]).alike(Signatures.of([signature(black)]))) == []


def test_a_cell_is_the_mean_of_its_pixels():
    frames = np.random.default_rng(0).integers(0, 256, (8, 24, 40, 3), np.uint8)
    expected = frames.reshape(8, 8, 3, 8, 5, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(signature(frames), expected, atol=1)


def test_a_decoded_clip_carries_its_signature(tmp_path):
    clip = decode(real_videos()[0], SPEC)
    path = FrameCache(tmp_path).put("ab" * 32, SPEC, clip)
    np.testing.assert_array_equal(load_signature(path), signature(clip.frames))
    np.testing.assert_array_equal(load_clip(path).frames, clip.frames)
    np.testing.assert_array_equal(unpacked(packed(load_signature(path))), load_signature(path))
    path.write_bytes(b"torn")
    assert load_signature(path) is None
    assert load_signature(tmp_path / "none") is None
    header = json.dumps({"__metadata__": {"clip": "{}"}}).encode()  # of an earlier version
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert load_signature(path) is None


# --- validate --decode ---


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    write_video(tmp_path / "a.mp4", moving_square(3), codec="libx264")
    write_video(tmp_path / "copy.avi", resized(moving_square(3), 48, 48), options={"b": "500000"})
    write_video(tmp_path / "b.mp4", moving_square(-3))
    (tmp_path / "text.mp4").write_text("this is not a video")
    whole = write_video(tmp_path / "cut.mkv", moving_square(2)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 3 // 5])
    return tmp_path


def write(path: pathlib.Path, *videos: str) -> str:
    rows = [
        {"id": f"{path.stem}-{n}", "video": video, "question": f"Q{n}?", "answer": "A."} for n, video in enumerate(videos)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_validate_decode_opens_every_video_and_finds_copies(folder, capsys):
    train = write(
        folder / "train.jsonl", "a.mp4", "text.mp4", f"{(folder / 'b.mp4').as_uri()}#t=0,1", "gone.mp4", "text.mp4"
    )
    held = write(folder / "held.jsonl", "copy.avi", "cut.mkv", "b.mp4")
    assert main(["data", "validate", train, held]) == 2
    assert "text.mp4" not in capsys.readouterr().err
    assert main(["data", "validate", train, held, "--decode", "--num-decoders", "2"]) == 2
    shown = capsys.readouterr()
    said = [line for line in shown.err.splitlines() if "open videos" not in line]
    assert [line for line in said if ": video: not_a_video: " in line] == [
        line for line in said if line.startswith(f"{train}:2: video: not_a_video: {folder / 'text.mp4'}")
    ]
    assert any(line.startswith(f"{held}:2: video: truncated: {folder / 'cut.mkv'} is cut") for line in said)
    alike = [line for line in said if "looks like" in line]
    assert alike == [
        f"warning: {held}:1: {folder / 'copy.avi'} looks like {folder / 'a.mp4'}, of another split, at {train}:1; if it is a copy, "
        "keep it in one split"
    ]
    assert "opened 6 videos: 4 decode, not_a_video 1, truncated 1" in shown.out


def test_a_clean_data_set_passes(folder, capsys):
    train, held = write(folder / "train.jsonl", "a.mp4"), write(folder / "held.jsonl", "b.mp4")
    assert main(["data", "validate", train, held, "--decode"]) == 0
    assert "opened 2 videos: 2 decode\n0 errors, 0 warnings" in capsys.readouterr().out
    assert main(["data", "validate", train, "--decode", "--num-decoders", "0"]) == 2
    assert "--num-decoders must be at least 1, got 0" in capsys.readouterr().err


def test_a_video_that_hangs_is_killed_and_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it waits for a writer, and there is none
    looked = decodable.look([str(tmp_path / "pipe.mp4")], deadline_s=0.2)
    assert {video: found.reason for video, found in looked.items()} == {str(tmp_path / "pipe.mp4"): "timeout"}


def test_stopping_waits_for_no_deadline(folder):
    os.mkfifo(folder / "pipe.mp4")

    def stop():
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        decodable.look([str(folder / "a.mp4"), str(folder / "pipe.mp4")], num_decoders=2, deadline_s=300, on_done=stop)
    assert time.monotonic() - began < 100, "it waited for the pipe's deadline"


def test_nothing_is_left_behind_when_opening_stops(folder, monkeypatch):
    made = []

    class Broken:
        def __init__(self, *_, **__):
            made.append(self)
            self.closed = False

        def decode(self, video):
            raise ClusterError("no memory")

        def close(self):
            self.closed = True

    monkeypatch.setattr(decodable, "ChildDecoder", Broken)
    with pytest.raises(ClusterError):
        decodable.look(["x.mp4", "y.mp4"], num_decoders=2)
    assert len(made) == 2
    assert all(decoder.closed for decoder in made)


def test_remote_videos_are_opened_and_not_called_unchecked(folder):
    path = write(folder / "d.jsonl", "s3://bucket/v.mp4")
    seen = []

    def look(videos):
        seen.extend(videos)
        return {video: decodable.Looked("missing", "no file at it") for video in videos}

    report = validate([path], look=look)
    assert seen == ["s3://bucket/v.mp4"]
    assert [str(error) for error in report.errors] == [
        f"{path}:1: video: missing: no file at it; replace the file, or remove its rows"
    ]
    assert not report.warnings


# --- in a run ---


def test_a_run_warns_of_probe_videos_that_look_like_training(tmp_path):
    cache, frames = FrameCache(tmp_path / "frames"), {}
    for number, (name, made) in enumerate((("a", moving_square(3)), ("copy", moving_square(3)), ("b", moving_square(-3)))):
        clip = decode(write_video(tmp_path / f"{name}.mp4", made, codec="libx264", options={"crf": str(10 + number)}), SPEC)
        frames[f"{name}.mp4"] = str(cache.put(f"{number:064d}", SPEC, clip))
    a, copy, b, gone = (
        Example(id=name, video=f"{name}.mp4", question="Q?", answer="A.") for name in ("a", "copy", "b", "gone")
    )
    assert lookalike_warning(frames, [a], [b, gone], split="probe") is None
    assert lookalike_warning(frames, [], [b], split="probe") is None
    warning = lookalike_warning(frames, [a, b], [gone, copy], split="probe")
    assert warning is not None
    assert warning.startswith(
        "1 of 1 videos of data.probe look like videos of data.train, first copy.mp4 like a.mp4; if they are copies"
    )
