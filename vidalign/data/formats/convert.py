"""Other projects' files as vidalign rows. Every row is converted or reported; nothing is dropped silently."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

from vidalign.data.formats.fields import Fields, Notes, has_content, without_column
from vidalign.data.formats.places import map_paths, paths_in, relocate, with_rate
from vidalign.data.reading import no_rows
from vidalign.data.rows import PreferenceRow, parse_row
from vidalign.data.source import folder_of, read_source
from vidalign.errors import RowError


@dataclasses.dataclass
class Conversion:
    """Converted rows in the source's order, the errors of the other rows, and counts of what the result does not hold."""

    rows: list[Fields] = dataclasses.field(default_factory=list)
    errors: list[RowError] = dataclasses.field(default_factory=list)
    notes: Notes = dataclasses.field(default_factory=Notes)
    num_read: int = 0
    num_pairs: int = 0
    missing_videos: list[str] = dataclasses.field(default_factory=list)


def import_file(
    source: str | pathlib.Path,
    to_row: Callable[[Fields, Notes], Fields],
    *,
    out: str | pathlib.Path,
    video_root: str | pathlib.Path | None = None,
    fps: float | None = None,
) -> Conversion:
    """The rows of `source` (anything that `vidalign.data.source` reads) as vidalign rows, ready to be written to `out`.

    Relative video paths are relative to `video_root` (default: the folder of `source`) and are rewritten by `relocate`. A row
    without an id gets the source's name and its row number as its id. An id that an earlier row already has gets a number appended.

    Args:
        fps: how many frames there are for one second in lists and folders of frames that do not say it.

    Raises:
        DataError: the source cannot be read, or holds no rows.
    """
    source, out = pathlib.Path(source), pathlib.Path(out)
    root = pathlib.Path(video_root) if video_root is not None else folder_of(source)
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
        if fps is not None:
            row = with_rate(row, fps, root)
        row = map_paths(row, lambda path: relocate(path, root, out.parent))
        broken = parse_row(row)[1]
        if broken:
            result.errors += [_with_way_out(error).at(where) for error in broken]
            continue
        ids.add(row["id"])
        result.rows.append({name: row[name] for name in PreferenceRow.model_fields if name in row})
        result.num_pairs += "chosen" in row
        result.notes.update(seen)
    if not result.num_read:
        raise no_rows(source)
    result.missing_videos = missing_videos(result.rows, out.parent)
    return result


def _import_row(fields: Fields | RowError, to_row: Callable[[Fields, Notes], Fields], notes: Notes) -> Fields:
    """One vidalign row, perhaps without an id. Columns that were not used are noted."""
    if isinstance(fields, RowError):
        raise fields
    left = {name: value for name, value in fields.items() if value is not None}
    try:
        row = to_row(left, notes)
    except KeyError as error:
        raise without_column(error) from error
    notes.update(f"column '{name}', which is not used" for name, value in left.items() if has_content(value))
    return row


def _with_way_out(error: RowError) -> RowError:
    if error.field.endswith("fps") and "is missing" in error.why:
        return RowError(error.field, error.why, "say how many frames there are for one second with --fps")
    return error


def _unused_id(wanted: str, ids: set[str], notes: Notes) -> str:
    if wanted not in ids:
        return wanted
    notes["id that an earlier row already has, which got a number appended"] += 1
    number = 2
    while f"{wanted}-{number}" in ids:
        number += 1
    return f"{wanted}-{number}"


def missing_videos(rows: list[Fields], folder: pathlib.Path) -> list[str]:
    """Local videos, frames and images that do not exist, each listed once, in order of appearance."""
    videos = dict.fromkeys(path for row in rows for path in paths_in(row))
    return [video for video in videos if "://" not in video and not (folder / video).exists()]
