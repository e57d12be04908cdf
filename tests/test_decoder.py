"""The child that decodes: hangs, crashes and bad files cost one video each; and the Ray Data stage around it."""

import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest
from conftest import write_video

from actors.decoder import ChunkDecoder
from vidalign.errors import DataError
from vidalign.types import Example, FrameSpec
from vidalign.video import decode_child, decoding
from vidalign.video.decode_child import ChildDecoder, DecodedVideo
from vidalign.video.frame_cache import load_clip

SPEC = FrameSpec(num_frames=4)
PATIENT_S = 300.0  # no machine is so slow that a good video takes as long


def write_noise(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
    return write_video(path, np.random.default_rng(seed).integers(0, 256, (12, 64, 64, 3), np.uint8))


@pytest.fixture
def child(tmp_path):
    decoder = ChildDecoder(SPEC, str(tmp_path / "frames"), deadline_s=PATIENT_S)
    yield decoder
    decoder.close()


def version_of(path: str) -> tuple[int, int]:
    """Changes whenever a file is written again in its place, even with equal bytes: it is another file then."""
    status = os.stat(path)
    return status.st_ino, status.st_mtime_ns


@pytest.fixture
def good(tmp_path) -> pathlib.Path:
    return write_noise(tmp_path / "good.mp4")


def when_blocked(pid: int, path: pathlib.Path, act) -> threading.Thread:
    """Call `act` once process `pid` is known to be decoding the FIFO at `path`: opening it to write waits for its reader."""

    def wait_and_act() -> None:
        with path.open("wb"):
            act(pid)

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


def when_blocked_anew(child: ChildDecoder, path: pathlib.Path, number: int, *, times: int) -> threading.Thread:
    """Send a signal to the child that reads the FIFO at `path`, and to those that take its place, `times` in all."""

    def act() -> None:
        for _ in range(times):
            with path.open("wb"):
                pid = child.pid
                assert pid is not None
                os.kill(pid, number)
                while pathlib.Path(f"/proc/{pid}").exists() and child.pid == pid:
                    time.sleep(0.001)  # the same child must not be met again

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_good_video_is_decoded_once(child, good):
    first = child.decode(str(good))
    assert first.reason == ""
    made = version_of(first.frames_path)
    assert child.decode(str(good)) == first
    assert child.decode(good.as_uri()).frames_path == first.frames_path
    assert version_of(first.frames_path) == made
    np.testing.assert_array_equal(load_clip(first.frames_path).frames, decoding.decode(good, SPEC).frames)


def test_equal_bytes_share_a_cache_file_and_changed_bytes_do_not(child, good, tmp_path):
    copy = shutil.copy(good, tmp_path / "copy.mp4")
    first = child.decode(str(good))
    made = version_of(first.frames_path)
    assert child.decode(str(copy)).frames_path == first.frames_path
    assert version_of(first.frames_path) == made
    write_noise(good, seed=1)
    third = child.decode(str(good))
    assert third.frames_path != first.frames_path
    assert not np.array_equal(load_clip(third.frames_path).frames, load_clip(first.frames_path).frames)


def test_damaged_cache_file_is_decoded_again(child, good):
    path = pathlib.Path(child.decode(str(good)).frames_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    again = child.decode(str(good))
    assert (again.reason, again.frames_path) == ("", str(path))
    assert path.read_bytes() == whole


def test_bad_files_keep_their_reason_and_the_child(child, good, tmp_path):
    (tmp_path / "zero.mp4").touch()
    assert child.decode(str(tmp_path / "zero.mp4")).reason == "zero_byte"
    pid = child.pid
    assert child.decode(str(tmp_path / "none.mp4")).reason == "missing"
    row = child.decode("no-such-protocol://host/video.mp4")
    assert (row.reason, row.frames_path) == ("unreadable", "")
    assert "no-such-protocol" in row.message
    assert child.decode(str(good)).reason == ""
    assert child.pid == pid


def test_remote_video_is_fetched(child, good):
    row = child.decode(f"local://{good}")  # any fsspec protocol takes the same way
    assert row.reason == ""
    made = version_of(row.frames_path)
    assert child.decode(str(good)).frames_path == row.frames_path
    assert version_of(row.frames_path) == made
    assert child.decode("local:///no/such/video.mp4").reason == "missing"


def test_hang_is_killed_at_the_deadline_and_the_next_video_decodes(child, good, tmp_path):
    os.mkfifo(tmp_path / "hang.mp4")  # reading it blocks for ever
    child.decode(str(tmp_path / "none.mp4"))
    pid = child.pid
    assert pid is not None
    child.deadline_s = 0.25  # only for what hangs: no other video has to be quick
    row = child.decode(str(tmp_path / "hang.mp4"))
    assert (row.reason, row.frames_path) == ("timeout", "")
    assert "deadline_s=0.25" in row.message
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    child.deadline_s = PATIENT_S
    assert child.decode(str(good)).reason == ""
    assert child.pid != pid


def test_a_child_whose_parent_does_not_kill_it_ends_by_itself(child, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_child, "ALARM_AFTER_DEADLINE_S", 0.25 - PATIENT_S)
    os.mkfifo(tmp_path / "hang.mp4")
    row = child.decode(str(tmp_path / "hang.mp4"))
    assert (row.reason, row.frames_path) == ("timeout", "")


def test_crash_is_named_and_the_next_video_decodes(child, good, tmp_path):
    os.mkfifo(tmp_path / "crash.mp4")
    first = child.decode(str(good))
    made = version_of(first.frames_path)
    thread = when_blocked_anew(child, tmp_path / "crash.mp4", signal.SIGSEGV, times=2)
    row = child.decode(str(tmp_path / "crash.mp4"))
    thread.join()
    assert (row.reason, row.frames_path) == ("crashed", "")
    assert "SIGSEGV" in row.message
    assert child.decode(str(good)) == first
    assert version_of(first.frames_path) == made


def test_child_that_cannot_start_is_a_sentence(child, good, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DataError, match="the decoding process did not start"):
        child.decode(str(good))
    assert child.pid is None


def test_file_uri_may_have_spaces(child, good):
    spaced = good.rename(good.with_name("a video.mp4"))
    assert "%20" in spaced.as_uri()
    assert child.decode(spaced.as_uri()).reason == ""


def test_death_between_two_videos_blames_neither(child, good):
    child.decode(str(good))
    os.kill(child.pid, signal.SIGKILL)
    child._process.wait()
    assert child.decode(str(good)).reason == ""


def test_cache_that_cannot_be_written_is_an_error_not_a_quarantine(good, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    decoder = ChildDecoder(SPEC, str(tmp_path / "taken"), deadline_s=PATIENT_S)
    with pytest.raises(DataError, match=r"video\.cache_dir"):
        decoder.decode(str(good))
    decoder.close()


def test_close_leaves_no_process(good, tmp_path):
    decoder = ChildDecoder(SPEC, str(tmp_path / "frames"))
    decoder.decode(str(good))
    pid = decoder.pid
    assert pid is not None
    decoder.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_questions_of_a_chunk_share_one_decoding_of_their_video(tmp_path, monkeypatch):
    decoder, asked = ChunkDecoder(SPEC, str(tmp_path / "frames")), []

    def decode(uri: str) -> DecodedVideo:
        asked.append(uri)
        return DecodedVideo(video=uri, reason="timeout", message="m")

    monkeypatch.setattr(decoder.child, "decode", decode)
    examples = [Example(id=uri, video=uri, question="Q?", answer="A.").to_row() for uri in ("a", "b", "a", "a")]
    row = decoder({"chunk": 3, "examples": json.dumps(examples)})
    assert asked == ["a", "b"]
    assert [video["video"] for video in json.loads(row["decoded"])] == ["a", "b", "a", "a"]
    assert row["chunk"] == 3


@pytest.mark.heavy
def test_decode_videos_with_good_and_bad_files_then_all_from_the_cache(local_ray, tmp_path):
    from actors.decoder import decode_videos

    good = [str(write_noise(tmp_path / f"good{i}.mp4", seed=i)) for i in range(20)]
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    cut = pathlib.Path(tmp_path / "cut.mp4")
    cut.write_bytes(pathlib.Path(good[0]).read_bytes()[:-2000])
    bad = {
        str(tmp_path / "zero.mp4"): "zero_byte",
        str(tmp_path / "text.mp4"): "not_a_video",
        str(tmp_path / "none.mp4"): "missing",
        str(cut): "truncated",
    }

    def run(uris: list[str], deadline_s: float = PATIENT_S) -> dict[str, DecodedVideo]:
        dataset = decode_videos(uris, SPEC, str(tmp_path / "frames"), deadline_s=deadline_s, num_decoders=1)
        rows = [DecodedVideo.from_row(row) for row in dataset.take_all()]
        assert len(rows) == len(set(uris)), "one row for each distinct uri"
        return {row.video: row for row in rows}

    first = run([*good, *bad, *good])
    assert {uri: row.reason for uri, row in first.items()} == {**dict.fromkeys(good, ""), **bad}
    made = {uri: version_of(first[uri].frames_path) for uri in good}
    for uri in good:
        np.testing.assert_array_equal(load_clip(first[uri].frames_path).frames, decoding.decode(uri, SPEC).frames)
    assert all(row.frames_path == "" and row.message for uri, row in first.items() if uri in bad)
    assert run([*good, *bad, *good]) == first
    assert {uri: version_of(first[uri].frames_path) for uri in good} == made
    os.mkfifo(tmp_path / "hang.mp4")
    hang = str(tmp_path / "hang.mp4")
    assert run([hang], deadline_s=0.25)[hang].reason == "timeout"


def test_a_chunk_decodes_everything_that_its_examples_show(tmp_path, good):
    other = write_noise(tmp_path / "other.mp4", seed=1)
    image = f"{(tmp_path / 'gone.png').as_uri()}#image"
    rich = Example(id="a", video=str(good), videos=(str(good), str(other)), images=(image,), question="Q?", answer="A.")
    plain = Example(id="b", video=str(good), question="Q?", answer="A.")
    decoder = ChunkDecoder(SPEC, str(tmp_path / "frames"), deadline_s=PATIENT_S)
    row = decoder({"chunk": 0, "examples": json.dumps([rich.to_row(), plain.to_row()])})
    decoded = json.loads(row["decoded"])
    assert [each["video"] for each in decoded] == [str(good), str(other), image, str(good)]
    assert [each["reason"] for each in decoded] == ["", "", "missing", ""]
