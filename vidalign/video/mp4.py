"""What the boxes of an MP4 or MOV file say, without decoding or reading its frames.

    moov ── trak ── mdia ── minf ── stbl: stts (durations)  ctts (pts - dts)  stss (keyframes)  stsz (sizes)  stsc, stco (places)
              └── edts ── elst (which part is played)

The names and layouts are those of ISO/IEC 14496-12.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

MAX_INDEX_BYTES = 256 * 2**20  # a day of video at 100 frames per second has an index of 140 MB


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Index:
    """The frames of one video track, in the order of their bytes.

    Attributes:
        times: int64 [N], presentation times in the track's time scale, counted from the start of its media.
        keyframes: bool [N].
        durations: int64 [N], in the same units.
    """

    times: np.ndarray
    keyframes: np.ndarray
    durations: np.ndarray


def where_cut(file: BinaryIO) -> str:
    """Where a file was cut: in its "index", in its "frames", or "" if it is whole.

    Boxes state their length. FFmpeg goes by what is left and takes a file that lost a few frames for a shorter video.
    """
    total, has_index = file.seek(0, os.SEEK_END), False
    for kind, _, _, end in _boxes(file, 0, total):
        if end > total and kind in (b"moov", b"mdat"):
            return "frames" if has_index else "index"
        has_index |= kind == b"moov"
    return ""


def read_index(file: BinaryIO, track_id: int) -> Index | None:
    """The index of a track, or None if it has to be found by reading the packets.

    None means that the file is fragmented, hides frames with an edit list, or has an index that contradicts itself or points beyond
    the end of the file.
    """
    total = file.seek(0, os.SEEK_END)
    moov = next((box for box in _boxes(file, 0, total) if box[0] == b"moov"), None)
    if moov is None or moov[3] - moov[2] > MAX_INDEX_BYTES:
        return None
    file.seek(moov[2])
    data = file.read(moov[3] - moov[2])
    boxes = _Boxes(data)
    try:
        for trak in boxes.find(b"trak"):
            header = trak.only(b"tkhd")
            if header.number(4, 20 if header.number(1, 0) == 1 else 12) == track_id:
                return _track_index(trak, boxes, total)
    except (ValueError, IndexError):
        pass
    return None


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int, int]]:
    """(type, start, start of the payload, end) of each box; the end is what the box claims."""
    while start + 8 <= end:
        file.seek(start)
        header = file.read(16)
        size, kind, payload = int.from_bytes(header[:4], "big"), header[4:8], start + 8
        if size == 1:  # a 64-bit size follows the type
            size, payload = int.from_bytes(header[8:16], "big"), start + 16
        elif size == 0:  # to the end of the file
            size = end - start
        if start + size < payload:
            return
        yield kind, start, payload, start + size
        start += size


@dataclasses.dataclass(frozen=True)
class _Boxes:
    """The payload of a box that holds other boxes, or a table."""

    data: bytes | memoryview

    def find(self, kind: bytes) -> Iterator[_Boxes]:
        view, start = memoryview(self.data), 0
        while start + 8 <= len(view):
            size = int.from_bytes(view[start : start + 4], "big")
            if size < 8 or start + size > len(view):
                return
            if view[start + 4 : start + 8] == kind:
                yield _Boxes(view[start + 8 : start + size])
            start += size

    def only(self, *path: bytes) -> _Boxes:
        found = self
        for kind in path:
            inner = next(found.find(kind), None)
            if inner is None:
                raise ValueError(f"no box {kind!r}")
            found = inner
        return found

    def number(self, size: int, at: int) -> int:
        if at + size > len(self.data):
            raise ValueError("box is too short")
        return int.from_bytes(self.data[at : at + size], "big")

    def table(self, columns: int, dtype: str = ">u4", at: int = 8) -> np.ndarray:
        """int64 [rows, columns]; the number of rows precedes the table."""
        rows = self.number(4, at - 4)
        values = np.frombuffer(self.data, dtype, rows * columns, at)  # ValueError if the box is too short
        return values.reshape(rows, columns).astype(np.int64)


def _track_index(trak: _Boxes, moov: _Boxes, file_size: int) -> Index | None:
    stbl = trak.only(b"mdia", b"minf", b"stbl")
    stsz = stbl.only(b"stsz")
    same_size, count = stsz.number(4, 4), stsz.number(4, 8)
    if not count or count > len(moov.data) or next(moov.find(b"mvex"), None) is not None:
        return None
    sizes = np.full(count, same_size, np.int64) if same_size else stsz.table(1, at=12)[:, 0]
    if not sizes.all():
        return None
    steps = _repeated(stbl.only(b"stts").table(2), count)
    offsets = next(stbl.find(b"ctts"), None)
    times = np.cumsum(steps) - steps
    if offsets is not None:
        times = times + _repeated(offsets.table(2).astype(np.uint32).view(np.int32).astype(np.int64), count)
    if not _plays_all(trak, moov, times) or _end(stbl, sizes) > file_size:
        return None
    sync = next(stbl.find(b"stss"), None)
    keyframes = np.full(count, sync is None)
    if sync is not None:
        numbers = sync.table(1)[:, 0]  # from one
        if not len(numbers) or numbers.min() < 1:
            return None
        keyframes[numbers - 1] = True
    return Index(times=times, keyframes=keyframes, durations=steps)


def _repeated(runs: np.ndarray, count: int) -> np.ndarray:
    """Undo run lengths: rows of (count, value) → int64 [count]."""
    if runs[:, 0].sum() != count:
        raise ValueError("the tables of the index disagree on the number of frames")
    return np.repeat(runs[:, 1], runs[:, 0])


def _end(stbl: _Boxes, sizes: np.ndarray) -> int:
    """The position after the last byte of any frame, from the places of the chunks and the number of frames in each."""
    narrow = next(stbl.find(b"stco"), None)
    starts = narrow.table(1)[:, 0] if narrow is not None else stbl.only(b"co64").table(1, ">u8")[:, 0]
    runs = stbl.only(b"stsc").table(3)  # first chunk, frames in each chunk from there on, description
    if not len(runs) or runs[0, 0] != 1 or runs[:, 0].max() > len(starts):
        raise ValueError("the table of chunks names chunks that do not exist")
    per_chunk = np.repeat(runs[:, 1], np.diff([*runs[:, 0], len(starts) + 1]))
    if per_chunk.sum() != len(sizes):
        raise ValueError("the chunks and the index disagree on the number of frames")
    before = np.concatenate([[0], np.cumsum(sizes)])
    last = np.cumsum(per_chunk)
    return int((starts + before[last] - before[last - per_chunk]).max())


def _plays_all(trak: _Boxes, moov: _Boxes, times: np.ndarray) -> bool:
    """Whether the edit list, if any, shows every frame once: at most a delay, and one edit that spans all frames."""
    edits = next((elst for edts in trak.find(b"edts") for elst in edts.find(b"elst")), None)
    if edits is None:
        return True
    if edits.number(1, 0) == 1:  # 64-bit: duration, media time, rate
        rows = [(edits.number(8, at), edits.number(8, at + 8)) for at in range(8, 8 + 20 * edits.number(4, 4), 20)]
        empty = 2**64 - 1
    else:
        rows = [(int(row[0]), int(row[1])) for row in edits.table(3)]
        empty = 2**32 - 1
    played = [row for row in rows if row[1] != empty]
    if len(played) != 1:
        return False
    header, media = moov.only(b"mvhd"), trak.only(b"mdia", b"mdhd")
    movie_scale, media_scale = (box.number(4, 20 if box.number(1, 0) == 1 else 12) for box in (header, media))
    duration, start = played[0]
    if not movie_scale:
        return False
    end = start + duration * media_scale / movie_scale if duration else float("inf")
    return bool(start <= times.min() and times.max() < end)
