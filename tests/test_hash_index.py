"""The index of content hashes: an unchanged file is read once, and no change of a file or of an entry gives a wrong hash.

No test waits and none depends on the clock: the index is told the time, and a change is made until the file system's times show it.
"""

import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable

import pytest
from conftest import real_videos

from vidalign.types import FrameSpec
from vidalign.video import decoding
from vidalign.video.hash_index import MIN_BYTES, RACY_S, HashIndex, is_settled
from vidalign.video.into_cache import decode_into_cache


def a_minute_later() -> float:
    return time.time() + 60


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return write(tmp_path / "video.mp4", b"a")


@pytest.fixture
def index(tmp_path) -> HashIndex:
    return HashIndex(tmp_path / "hashes", a_minute_later)


def write(path: pathlib.Path, letter: bytes, size: int = MIN_BYTES) -> pathlib.Path:
    path.write_bytes(letter * size)
    return path


def until_noticed(change: Callable[[], object], path: pathlib.Path) -> None:
    """Make a change, again and again until the file's times differ: file systems count them in steps."""
    before = path.stat().st_ctime_ns
    change()
    while path.stat().st_ctime_ns == before:
        change()


def is_read(index: HashIndex, path: pathlib.Path) -> bool:
    """Ask for the hash, which must be right; whether the file was read for it."""
    with path.open("rb") as file:
        assert index.sha256(file) == hashlib.sha256(path.read_bytes()).hexdigest()
        return file.tell() > 0


def test_unchanged_file_is_read_once_by_whoever_asks(index, path, monkeypatch):
    assert is_read(index, path)
    assert not is_read(index, path)
    assert not is_read(HashIndex(index.root), path)
    monkeypatch.chdir(path.parent)
    assert not is_read(index, pathlib.Path(path.name)), "paths are absolute"
    assert decoding.content_hash(path, index) == decoding.content_hash(path)


def test_other_paths_have_entries_of_their_own(index, path):
    link, copy = path.with_name("link.mp4"), path.with_name("copy.mp4")
    assert is_read(index, path)
    link.symlink_to(path)
    shutil.copy2(path, copy)
    assert is_read(index, link)
    assert is_read(index, copy)
    until_noticed(lambda: write(path, b"b"), path)
    assert is_read(index, link)


@pytest.mark.parametrize("keeps_mtime", [False, True])
@pytest.mark.parametrize("how", ["same size", "other size", "replaced", "touched"])
def test_changed_file_never_keeps_its_hash(index, path, how, keeps_mtime):
    status = path.stat()

    def change() -> None:
        if how == "same size":
            write(path, b"b")
        elif how == "other size":
            write(path, b"c", MIN_BYTES + 1)
        elif how == "replaced":
            os.replace(write(path.with_name("new"), b"d"), path)
        else:
            path.touch()
        if keeps_mtime:
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert is_read(index, path)
    assert not is_read(index, path)
    until_noticed(change, path)
    assert is_read(index, path)
    assert not is_read(index, path)


def test_a_file_is_settled_once_its_last_change_is_old_enough():
    assert is_settled(mtime=100.0, ctime=90.0, now=100.1 + RACY_S)
    assert is_settled(mtime=90.0, ctime=100.0, now=100.1 + RACY_S)
    assert not is_settled(mtime=100.0, ctime=90.0, now=100.0 + RACY_S)
    assert not is_settled(mtime=90.0, ctime=100.0, now=100.0 + RACY_S)
    assert not is_settled(mtime=200.0, ctime=90.0, now=100.0), "the future"
    assert not is_settled(mtime=0.0, ctime=0.0, now=100.0), "a file system that keeps no times"


def test_file_that_has_just_changed_is_not_entered(path, tmp_path):
    now = HashIndex(tmp_path / "hashes", lambda: path.stat().st_ctime + RACY_S - 0.1)
    for letter in (b"b", b"c", b"d"):  # of one size, and possibly of equal times
        write(path, letter)
        assert is_read(now, path)
        assert is_read(now, path)
    assert not now.root.exists()
    later = HashIndex(now.root, lambda: path.stat().st_ctime + RACY_S + 0.1)
    assert is_read(later, path)
    assert not is_read(now, path)


def test_file_of_the_future_and_file_that_is_small_are_not_entered(index, path):
    os.utime(path, (a_minute_later() + 1000,) * 2)
    assert is_read(index, path)
    write(path, b"b", MIN_BYTES - 1)
    assert is_read(index, path)
    assert not index.root.exists()


def test_file_that_changes_while_it_is_hashed_is_not_entered(index, path):
    class Changing:
        """A file that is written to at the first read."""

        def __init__(self, file) -> None:
            self.name, self.fileno, self.readable, self.file = file.name, file.fileno, file.readable, file
            self.changed = False

        def readinto(self, buffer) -> int:
            size = self.file.readinto(buffer)
            if not self.changed:
                until_noticed(lambda: write(path, b"b"), path)
                self.changed = True
            return size

    with path.open("rb", buffering=0) as file:
        index.sha256(Changing(file))
    assert not index.root.exists()
    assert is_read(index, path)


def test_damaged_or_foreign_entry_is_ignored_and_written_again(index, path, tmp_path):
    is_read(index, path)
    [entry] = index.root.glob("*/*")
    whole = entry.read_bytes()
    other = HashIndex(tmp_path / "others", a_minute_later)
    is_read(other, write(tmp_path / "other.mp4", b"b"))
    [foreign] = other.root.glob("*/*")
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    for data in (b"", whole[:70], flipped, foreign.read_bytes(), b"\xff" * 129, whole + b"x"):
        entry.write_bytes(data)
        assert is_read(index, path)
        assert entry.read_bytes() == whole
        assert not is_read(index, path)


def test_folder_that_cannot_be_written_costs_only_time(path, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    index = HashIndex(tmp_path / "taken", a_minute_later)
    assert is_read(index, path)
    assert is_read(index, path)


def test_decoding_enters_a_video_that_has_long_been_there(tmp_path):
    [bikes] = [video for video in real_videos() if video.stem == "bikes"]
    first = decode_into_cache(str(bikes), FrameSpec(num_frames=2), str(tmp_path))
    made = os.stat(first["frames_path"])
    assert decode_into_cache(str(bikes), FrameSpec(num_frames=2), str(tmp_path)) == first
    assert os.path.samestat(os.stat(first["frames_path"]), made)
    assert not is_read(HashIndex(tmp_path / "hashes"), bikes)
