"""Moments of a process, noted in a file. Imports nothing heavy: it runs in processes whose start is timed."""

from __future__ import annotations

import pathlib
import time

from vidalign import files


def mark(folder: pathlib.Path, name: str, *, at: float | None = None) -> None:
    """Note that something happened now, or `at` (seconds since the epoch)."""
    files.write_json(folder / "marks.json", {**read_marks(folder), name: time.time() if at is None else at})


def read_marks(folder: pathlib.Path) -> dict[str, float]:
    """What was noted in this folder, in seconds since the epoch."""
    path = folder / "marks.json"
    return files.read_json(path) if path.is_file() else {}
