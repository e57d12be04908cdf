"""Subtitles as texts: those on screen at the moments of the frames that the model sees."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence

from vidalign.data.suites.reading import Row, rows_of
from vidalign.errors import DataError, VideoError
from vidalign.types import FrameSpec

_TIME = re.compile(r"(\d+):(\d{2}):(\d{2})[,.](\d{1,3})")
_TAG = re.compile(r"<[^<>]*>")


@dataclasses.dataclass(frozen=True)
class Line:
    """A text and when it is on screen, in seconds."""

    start_s: float
    end_s: float
    text: str

    def covers(self, times_s: Sequence[float]) -> bool:
        """Whether it is on screen at any of these moments."""
        return any(self.start_s <= time < self.end_s for time in times_s)


def read_srt(path: pathlib.Path) -> list[Line]:
    """The lines of a SubRip file, without markup. Raises `DataError` for a block without its times."""
    found = []
    blocks = re.split(r"\n\s*\n", path.read_bytes().decode("utf-8-sig", "replace").replace("\r\n", "\n").strip())
    for number, block in enumerate(filter(str.strip, blocks), start=1):
        lines = block.strip().split("\n")
        times = [index for index, line in enumerate(lines) if "-->" in line]
        stamps = _TIME.findall(lines[times[0]]) if times else []
        if len(stamps) != 2:
            raise DataError(
                f"{path}: block {number} has no line 'start --> end'; give the subtitles as they are published (.srt)"
            )
        start, end = (int(h) * 3600 + int(m) * 60 + int(s) + int(ms.ljust(3, "0")) / 1000 for h, m, s, ms in stamps)
        text = " ".join(_TAG.sub("", line).strip() for line in lines[times[0] + 1 :]).strip()
        if text:
            found.append(Line(start, end, text))
    return found


def read_json_lines(path: pathlib.Path, form: str, *, starts_at_s: float, duration_s: float) -> list[Line]:
    """LongVideoBench's subtitles: {"timestamp": [start, end], "text"} or {"start", "end", "line"}, from the whole video's clock.

    A line is on screen for at least a second, and one without an end until the end of the video, as in the suite's own loader.
    """
    found = []
    for row in rows_of(path, form):
        start, end, text = _timed(row, duration_s)
        start, end = start - starts_at_s, end - starts_at_s
        if end - start < 1:
            middle = (start + end) / 2
            start, end = middle - 0.5, middle + 0.5
        if text.strip():
            found.append(Line(start, end, text.strip()))
    return found


def _timed(row: Row, duration_s: float) -> tuple[float, float, str]:
    if not row.has("timestamp"):
        return _clock(row, "start"), _clock(row, "end"), row.text("line", blank=True)
    times = row.fields["timestamp"]
    if not isinstance(times, list) or len(times) != 2 or not isinstance(times[0], int | float):
        raise row.refuse("timestamp", f"must be [start, end] in seconds, got {times!r}")
    end = float(times[1]) if isinstance(times[1], int | float) else duration_s
    return float(times[0]), end, row.text("text", blank=True)


def _clock(row: Row, name: str) -> float:
    match = re.fullmatch(r"(\d+):(\d{2}):(\d{2}(?:\.\d+)?)", row.text(name))
    if match is None:
        raise row.refuse(name, f"must be a time such as 00:01:02.345, got {row.fields[name]!r}")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def on_frames(lines: Sequence[Line], video: str, spec: FrameSpec | None) -> list[str]:
    """The texts that are on screen at the frames which `spec` takes of a video, in order; all where these frames are not known."""
    if spec is None:
        return [line.text for line in lines]
    from vidalign.video.decoding import frame_times_s

    try:
        times = frame_times_s(video, spec)
    except VideoError:
        return []  # it will not be asked about
    return [line.text for line in lines if line.covers(times)]
