"""The content hashes of files, so that an unchanged file is not read again just to be hashed, as in git's index.

    <root>/ab/abcdef…      the name is a hash of the file's absolute path; the content is the SHA-256 and a check value

An entry is valid for the size, inode, mtime and ctime with which it was made; its check value covers them and the hash. An entry
that is torn, damaged or of another file is ignored, and the file is hashed. As in git, a file that changed just before it was
hashed gets no entry ("racily clean"): it could change again and keep its times, which file systems count in steps of up to two
seconds.

Entries are written atomically; any number of processes and nodes may use the folder at once if their clocks agree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import stat
import time
from collections.abc import Callable
from io import BufferedReader

from vidalign import files

MIN_BYTES = 2**18  # hashing a smaller file takes no longer than looking it up
RACY_S = 2.0  # how long a file must have been unchanged


@dataclasses.dataclass(frozen=True)
class HashIndex:
    """A folder of content hashes. `clock` gives the current time, in seconds as file systems count them."""

    root: pathlib.Path
    clock: Callable[[], float] = time.time

    def sha256(self, file: BufferedReader) -> str:
        """SHA-256, in hex, of a file that was just opened by its name. The file is read only if there is no entry for it."""
        # Of the open file: a network file system may cache old times of a path, but asks again when a file is opened.
        began, status = self.clock(), os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size < MIN_BYTES:
            return _digest(file)
        name = _hash(os.path.abspath(file.name))
        entry = self.root / name[:2] / name
        found = _read(entry, status)
        if found:
            return found
        digest = _digest(file)
        if is_settled(status.st_mtime, status.st_ctime, began) and _state(os.fstat(file.fileno())) == _state(status):
            text = f"{digest} {_check(digest, status)}"
            with contextlib.suppress(OSError):  # if the folder cannot be written, the hash is still right
                files.write_bytes_atomic(entry, text.encode(), durable=False)
        return digest


def is_settled(mtime: float, ctime: float, now: float) -> bool:
    """Whether a file with these times, in seconds, is sure to have different times after any later change."""
    return 0 < max(mtime, ctime) < now - RACY_S


def _read(entry: pathlib.Path, status: os.stat_result) -> str:
    """The hash, or "" if there is no entry for a file in this state."""
    try:
        digest, check = entry.read_text(encoding="ascii").split(" ")
    except (OSError, ValueError):
        return ""
    return digest if check == _check(digest, status) else ""


def _check(digest: str, status: os.stat_result) -> str:
    return _hash(digest, *_state(status))


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def _hash(*parts: str | int) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
