"""Lines that are appended to a file as they come. Of a run in an object store, which cannot append, it is put whole now and then."""

from __future__ import annotations

import pathlib
import time

from vidalign import files, stored

PUT_EVERY_S = 10.0


class LineLog:
    """Appends to `path`, whose lines so far are kept.

    Of a run in a store, what was added since the last `put` is lost by a kill; the end of a `with` block puts.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._lines: list[str] | None = None
        self._is_ahead, self._put_at = False, time.monotonic()
        if stored.of(path) is not None:
            self._lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []

    def __enter__(self) -> LineLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.put()

    def add(self, line: str) -> None:
        """Append one line, which is given without its end."""
        if self._lines is None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            return
        self._lines.append(line + "\n")
        self._is_ahead = True
        if time.monotonic() - self._put_at >= PUT_EVERY_S:
            self.put()

    def put(self) -> None:
        """Have all lines where the file is kept."""
        if self._lines is not None and self._is_ahead:
            files.write_text_atomic(self._path, "".join(self._lines))
            self._is_ahead, self._put_at = False, time.monotonic()
