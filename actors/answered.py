"""How many examples of the chunks at work are answered, in small files that the driver looks at; only people read them."""

from __future__ import annotations

import contextlib
import pathlib
import threading
import time

from vidalign import files

WRITE_EVERY_S = 0.5
PREFIX = ".answered-"


class Answered:
    """The count of one chunk. Any thread may call `one`."""

    def __init__(self, parts: pathlib.Path, chunk: int) -> None:
        self._path = parts / f"{PREFIX}{chunk:06d}"
        self._number, self._written_at = 0, 0.0
        self._lock = threading.Lock()

    def one(self, _answer: object = None) -> None:
        """One more example is answered."""
        with self._lock:
            self._number += 1
            if time.monotonic() - self._written_at < WRITE_EVERY_S:
                return
            self._written_at = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk shows where it matters
                files.write_bytes_atomic(self._path, str(self._number).encode(), durable=False)

    def over(self) -> None:
        """The chunk is finished, and counted as such."""
        with self._lock:
            self._written_at = float("inf")
            self._path.unlink(missing_ok=True)


def num_answered(parts: pathlib.Path) -> int:
    """The examples of unfinished chunks that are answered."""
    number = 0
    for path in parts.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, ValueError):  # one that is finished meanwhile
            number += int(path.read_bytes())
    return number


def forget(parts: pathlib.Path) -> None:
    """Remove what an earlier command left behind."""
    for path in parts.glob(f"{PREFIX}*"):
        path.unlink(missing_ok=True)
