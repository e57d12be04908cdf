"""vidalign's rows and runs' pairs in other projects' formats, and in other kinds of files."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

from vidalign.data.formats.convert import Conversion
from vidalign.data.formats.fields import Fields, Notes, has_content, without_column
from vidalign.data.formats.places import map_paths, relocate, spelled_out, with_listed_frames
from vidalign.data.reading import CheckedRow, check_rows, folder_of_videos, no_rows
from vidalign.data.rows import PreferenceRow, to_example
from vidalign.errors import DataError, RowError
from vidalign.prompts import lists_options
from vidalign.types import PreferencePair

Only: TypeAlias = Literal["pairs", "examples"]


def export_file(
    source: str | pathlib.Path,
    from_row: Callable[[Fields, Notes], Fields],
    *,
    out: str | pathlib.Path,
    video_root: str | pathlib.Path | None = None,
    only: Only | None = None,
    one_kind: bool = False,
) -> Conversion:
    """The rows of a data file, or the pairs of a run, in another format. Relative paths are rewritten for the folder of `out`.

    Args:
        only: which rows to write; None means all.
        one_kind: whether pairs and examples in one file are an error.

    Raises:
        DataError: the file cannot be read, holds no rows, or holds pairs and examples where that is an error.
    """
    source, out = pathlib.Path(source), pathlib.Path(out)
    root = folder_of_videos(source, video_root)
    result = Conversion()
    num_other = 0
    for checked in _checked(source, root, result):
        assert checked.row is not None
        is_pair = isinstance(checked.row, PreferenceRow)
        if only is not None and is_pair != (only == "pairs"):
            num_other += 1
            continue
        row = checked.row.model_dump(exclude_unset=True, exclude_none=True)
        row = spelled_out({name: value for name, value in row.items() if has_content(value)})
        row, num_folders = with_listed_frames(row, root)
        seen = Notes(_unsaid(checked.pair))
        if checked.row.options and not lists_options(to_example(checked.row, root)):
            seen["options that the question does not list, kept in a column that other projects do not read"] += 1
        if num_folders:
            seen["folder of frames, which is written as the list of its images"] += num_folders
        try:
            made = from_row(map_paths(row, lambda path: relocate(path, root, out.parent)), seen)
        except (RowError, KeyError) as error:
            error = without_column(error) if isinstance(error, KeyError) else error
            result.errors.append(error.at(checked.where))
            continue
        result.rows.append(made)
        result.num_pairs += is_pair
        result.notes.update(seen)
    if num_other:
        result.notes[f"{'example' if only == 'pairs' else 'pair'}, left out by --only {only}"] += num_other
    if one_kind and 0 < result.num_pairs < len(result.rows):
        raise DataError(
            f"{source} holds {result.num_pairs:,} pairs and {len(result.rows) - result.num_pairs:,} examples, which this format "
            "cannot hold in one file; export each with --only pairs and --only examples"
        )
    return result


def convert_file(
    source: str | pathlib.Path, *, out: str | pathlib.Path, video_root: str | pathlib.Path | None = None
) -> Conversion:
    """The rows of a data file for another kind of file, every field kept. Relative paths are rewritten for the folder of `out`.

    Raises:
        DataError: the file cannot be read, or holds no rows.
    """
    source, out = pathlib.Path(source), pathlib.Path(out)
    root = folder_of_videos(source, video_root)
    result = Conversion()
    for checked in _checked(source, root, result):
        assert checked.row is not None
        row = checked.row.model_dump(exclude_unset=True) if checked.pair is None else checked.pair.to_row()
        result.rows.append(map_paths(row, lambda path: relocate(path, root, out.parent)))
        result.num_pairs += isinstance(checked.row, PreferenceRow)
    return result


def _checked(source: pathlib.Path, root: pathlib.Path, result: Conversion) -> Iterator[CheckedRow]:
    """The rows that break no rule; the others' errors go to `result`."""
    for checked in check_rows(source, root, {}):
        result.num_read += 1
        if checked.errors:
            result.errors += checked.errors
        else:
            yield checked
    if not result.num_read:
        raise no_rows(source)


def _unsaid(pair: PreferencePair | None) -> dict[str, Any]:
    """What a run knew of a pair and no other project's row holds, as notes."""
    if pair is None:
        return {}
    known = {
        "'provenance' of a run's pair": pair.provenance not in ("", "{}"),
        "trusts of a run's pair": not (math.isnan(pair.chosen_trust) and math.isnan(pair.rejected_trust)),
    }
    return {name: 1 for name, is_known in known.items() if is_known}
