"""The rows of a data file, read and checked: what `vidalign data validate` accepts, and nothing else.

    source ─► each row alone (`vidalign.data.rows`) ─► ids and questions of the rows before it ─► `DataRow`

Video files are not looked at here: a run quarantines those it cannot use. This module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from vidalign.data.leakage import locate
from vidalign.data.rows import SIDES, ExampleRow, PreferenceRow, parse_row, to_example
from vidalign.data.source import folder_of, read_source
from vidalign.data.stored_pairs import is_stored, row_of, stored_pair
from vidalign.errors import ConfigError, DataError, RowError
from vidalign.storage import check_uri, is_uri, staged
from vidalign.types import Example, PreferencePair
from vidalign.video.naming import split


@dataclasses.dataclass(frozen=True)
class DataRow:
    """One row that keeps every rule: its example, the row with all its fields, and its place "file:line".

    `pair` is the row itself where a run wrote it (`vidalign.data.stored_pairs`), with everything that the run knew of it.
    """

    example: Example
    row: ExampleRow | PreferenceRow
    where: str
    pair: PreferencePair | None = None


@dataclasses.dataclass(frozen=True)
class CheckedRow:
    """One row with every rule that it breaks, alone or together with the rows before it.

    `row` is None if it could not be read; `locations` are those of its videos, then of its images, as `vidalign.data.leakage.locate`
    gives them, and `names` are their names.
    """

    where: str
    row: ExampleRow | PreferenceRow | None
    locations: tuple[str, ...]
    errors: tuple[RowError, ...]
    names: tuple[str, ...] = ()
    pair: PreferencePair | None = None


def read_rows(
    path: str | pathlib.Path,
    *,
    video_root: str | pathlib.Path | None = None,
    limit: int | None = None,
    key: str = "data",
) -> list[DataRow]:
    """The rows of a data file (anything that `vidalign.data.source` reads, or a file or folder in a store), at most `limit`.

    A relative `video` is relative to `video_root` (default: the folder of the file). `key`: the option that has `path`.

    Raises:
        DataError: the file is missing or empty, or a row breaks a rule. The message gives the first such row's file and line,
            and field, reason and fix for each rule that it breaks.
    """
    if is_uri(str(path)):
        return _staged_rows(key, str(path), video_root=video_root, limit=limit)
    path = pathlib.Path(path)
    root = root_of_videos(path, video_root)
    rows: list[DataRow] = []
    for checked in check_rows(path, root, {}):
        if checked.errors:
            raise _joined(checked)
        assert checked.row is not None
        rows.append(DataRow(to_example(checked.row, root), checked.row, checked.where, checked.pair))
        if len(rows) == limit:
            break
    if not rows:
        raise no_rows(path)
    return rows


def _staged_rows(key: str, uri: str, *, video_root: str | pathlib.Path | None, limit: int | None) -> list[DataRow]:
    """The rows of a file or folder in a store, whose places are those in the store."""
    path = staged(key, uri)
    above, name = uri.rstrip("/").rpartition("/")[::2]
    root = video_root if video_root is not None else uri if path.is_dir() else above
    here, there = str(path), f"{above}/{name}"
    try:
        rows = read_rows(path, video_root=root, limit=limit)
    except RowError as error:
        raise error.at(error.where.replace(here, there)) from error
    except DataError as error:
        raise DataError(str(error).replace(here, there)) from error
    return [dataclasses.replace(row, where=row.where.replace(here, there)) for row in rows]


def read_examples(
    path: str | pathlib.Path, *, video_root: str | pathlib.Path | None = None, limit: int | None = None
) -> list[Example]:
    """The examples of `read_rows`."""
    return [row.example for row in read_rows(path, video_root=video_root, limit=limit)]


def check_rows(path: pathlib.Path, root: pathlib.Path | str, places_of_ids: dict[str, str]) -> Iterator[CheckedRow]:
    """Every row of a file with the rules that it breaks.

    Args:
        root: the folder, or the uri, that relative videos are relative to.
        places_of_ids: where each id already in use was used; the ids of this file are added.
    """
    places_of_questions: dict[tuple[str, ...], str] = {}
    located = functools.cache(
        functools.partial(locate, root=root if isinstance(root, pathlib.Path) else pathlib.Path())
    )  # several rows may share one video
    stored_ids: set[str] = set()
    for where, fields in read_source(path):
        pair = None
        if not isinstance(fields, RowError) and is_stored(fields):
            fields, pair = _stored(fields, stored_ids)
        if isinstance(fields, RowError):
            yield CheckedRow(where, None, (), (fields.at(where),))
            continue
        row, broken = parse_row(fields)
        if row is None:
            yield CheckedRow(where, None, (), tuple(error.at(where) for error in broken))
            continue
        example = to_example(row, root)
        names = example.decoded
        locations = tuple(map(located, names))
        shown = [f"{location}#{split(name)[1]}" for location, name in zip(locations, names, strict=True)]
        said = [row.system, *(turn.content for turn in example.turns)]
        broken += _used_before(row, (*shown, *said), where, places_of_ids, places_of_questions)
        yield CheckedRow(where, row, locations, tuple(error.at(where) for error in broken), names, pair)


def _stored(fields: dict[str, Any], ids: set[str]) -> tuple[dict[str, Any] | RowError, PreferencePair | None]:
    """A pair that a run wrote, as the fields of a row and as itself. A second pair of an example goes by its own id."""
    try:
        pair = stored_pair(fields)
    except RowError as error:
        return error, None
    row_id = pair.id if pair.example_id in ids else pair.example_id
    ids.add(pair.example_id)
    return row_of(pair, row_id), pair


def _used_before(
    row: ExampleRow,
    context: tuple[str, ...],
    where: str,
    places_of_ids: dict[str, str],
    places_of_questions: dict[tuple[str, ...], str],
) -> Iterator[RowError]:
    """Errors for an id used before, and for a video and question (for pairs: and responses) that an earlier row of the file has."""
    earlier = places_of_ids.setdefault(row.id, where)
    if earlier != where:
        yield RowError("id", f"{row.id!r} is also the id of {earlier}", "give every row its own id")
    is_pair = isinstance(row, PreferenceRow)
    texts = ("question", *SIDES) if is_pair else ("question",)  # two pairs may share a question
    key = (*context, *(getattr(row, name).strip() for name in texts))
    earlier = places_of_questions.setdefault(key, where)
    if earlier != where:
        why = f"the video and {'pair' if is_pair else 'question'} are the same as at {earlier}"
        yield RowError("question", why, "remove one of the two rows")


def root_of_videos(path: pathlib.Path, video_root: str | pathlib.Path | None) -> pathlib.Path | str:
    """What the relative videos of a file are relative to: `video_root`, which may be a uri, or else the folder of the file."""
    if video_root is not None and is_uri(str(video_root)):
        check_uri("data.video_root", str(video_root))
        return str(video_root)
    return folder_of_videos(path, video_root)


def folder_of_videos(path: pathlib.Path, video_root: str | pathlib.Path | None) -> pathlib.Path:
    """The same where it must be a folder, as for what is written for other programs. Raises `ConfigError` for a uri."""
    if video_root is not None and is_uri(str(video_root)):
        raise ConfigError(f"video_root={video_root} must be a folder here; give where that store is mounted")
    return pathlib.Path(video_root) if video_root is not None else folder_of(path)


def no_rows(path: pathlib.Path) -> RowError:
    """The error for an empty file."""
    return RowError("file", "holds no rows", "write one JSON object per line, or leave the file out", str(path))


def _joined(checked: CheckedRow) -> DataError:
    if len(checked.errors) == 1:
        return checked.errors[0]
    return DataError(f"{checked.where}: " + "; and ".join(str(error.at("")) for error in checked.errors))
