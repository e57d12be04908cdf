"""Converts whole files from and to other formats. Every row is converted or reported; nothing is dropped silently."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

from vidalign.data.formats.fields import Fields, Notes, has_content
from vidalign.data.formats.source import read_source
from vidalign.data.rows import PreferenceRow, parse_row
from vidalign.errors import DataError, RowError


@dataclasses.dataclass
class Conversion:
    """Converted rows in the source's order, the errors of the other rows, and counts of what the result does not hold."""

    rows: list[Fields] = dataclasses.field(default_factory=list)
    errors: list[RowError] = dataclasses.field(default_factory=list)
    notes: Notes = dataclasses.field(default_factory=Notes)
    num_read: int = 0
    missing_videos: list[str] = dataclasses.field(default_factory=list)


def import_file(
    source: str | pathlib.Path,
    to_row: Callable[[Fields, Notes], Fields],
    *,
    out: str | pathlib.Path,
    video_root: str | pathlib.Path | None = None,
) -> Conversion:
    """The rows of `source` as vidalign rows, ready to be written to `out`.

    Relative video paths are relative to `video_root` (default: the folder of `source`) and are rewritten by `relocate`. A row
    without an id gets the source's name and its row number as its id. An id that an earlier row already has gets a number appended.

    Raises:
        DataError: the source cannot be read, or holds no rows.
    """
    source, out = pathlib.Path(source), pathlib.Path(out)
    root = pathlib.Path(video_root) if video_root is not None else source.parent
    result = Conversion()
    ids: set[str] = set()
    for where, fields in read_source(source):
        result.num_read += 1
        seen = Notes()
        try:
            row = _import_row(fields, to_row, seen)
        except RowError as error:
            result.errors.append(error.at(where))
            continue
        row["id"] = _unused_id(row.get("id") or f"{source.stem}-{result.num_read:06d}", ids, seen)
        if isinstance(row.get("video"), str):
            row["video"] = relocate(row["video"], root, out.parent)
        broken = parse_row(row)[1]
        if broken:
            result.errors += [error.at(where) for error in broken]
            continue
        ids.add(row["id"])
        result.rows.append({name: row[name] for name in PreferenceRow.model_fields if name in row})
        result.notes.update(seen)
    if not result.num_read:
        raise DataError(f"{source} holds no rows")
    result.missing_videos = missing_videos(result.rows, out.parent)
    return result


def _import_row(fields: Fields | RowError, to_row: Callable[[Fields, Notes], Fields], notes: Notes) -> Fields:
    """One vidalign row, perhaps without an id. Columns that were not used are noted."""
    if isinstance(fields, RowError):
        raise fields
    left = {name: value for name, value in fields.items() if value is not None}
    row = to_row(left, notes)
    notes.update(f"column '{name}', which is not used" for name, value in left.items() if has_content(value))
    return row


def _unused_id(wanted: str, ids: set[str], notes: Notes) -> str:
    if wanted not in ids:
        return wanted
    notes["id that an earlier row already has, which got a number appended"] += 1
    number = 2
    while f"{wanted}-{number}" in ids:
        number += 1
    return f"{wanted}-{number}"


def relocate(video: str, root: pathlib.Path, folder: pathlib.Path) -> str:
    """Rewrite a path relative to `root` for a file in `folder`: relative to `folder` if it lies below it, else absolute.

    Uris and absolute paths are kept, and so is every path if the two folders are the same.
    """
    if "://" in video or os.path.isabs(video) or root.absolute() == folder.absolute():
        return video
    path = pathlib.Path(os.path.abspath(root / video))
    return path.relative_to(folder.absolute()).as_posix() if path.is_relative_to(folder.absolute()) else str(path)


def missing_videos(rows: list[Fields], folder: pathlib.Path) -> list[str]:
    """Local videos whose files do not exist, each listed once, in order of appearance."""
    videos = dict.fromkeys(row["video"] for row in rows)
    return [video for video in videos if "://" not in video and not (folder / video).is_file()]


def export_file(
    source: str | pathlib.Path, from_row: Callable[[Fields, Notes], Fields], *, out: str | pathlib.Path
) -> Conversion:
    """vidalign's pairs in another format. Relative video paths are rewritten for the folder of `out` by `relocate`.

    Raises:
        DataError: the file cannot be read, or holds no rows.
    """
    source, out = pathlib.Path(source), pathlib.Path(out)
    result = Conversion()
    for where, fields in read_source(source):
        result.num_read += 1
        try:
            result.rows.append(_export_row(fields, from_row, result.notes, source.parent, out.parent))
        except RowError as error:
            result.errors.append(error.at(where))
    if not result.num_read:
        raise DataError(f"{source} holds no rows")
    return result


def _export_row(
    fields: Fields | RowError,
    from_row: Callable[[Fields, Notes], Fields],
    notes: Notes,
    root: pathlib.Path,
    folder: pathlib.Path,
) -> Fields:
    if isinstance(fields, RowError):
        raise fields
    row, broken = parse_row(fields)
    if broken:
        raise broken[0]
    if not isinstance(row, PreferenceRow):
        raise RowError("chosen", "is missing: the row is an example, not a pair", "export only files of pairs")
    if not isinstance(row.video, str):
        raise RowError("video", "is no single video file, which this format cannot hold", "leave the row out")
    present = {name: value for name, value in fields.items() if has_content(value)}
    return from_row({**present, "video": relocate(row.video, root, folder)}, notes)
