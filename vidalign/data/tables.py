"""The rows of Parquet, Arrow and CSV files, each with its place "file: row n" (from 1) or, in CSV, "file:line".

A media column of Hugging Face `datasets`, {"path", "bytes"}, becomes its path where there are no bytes. Arrow gives every object
of a column the same fields; those that are null are left out again.
"""

from __future__ import annotations

import csv
import json
import pathlib
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from vidalign.data.lines import Located
from vidalign.data.rows import PreferenceRow
from vidalign.errors import DataError, RowError
from vidalign.types import PreferencePair

BATCH_ROWS = 256
FILE_MAGIC = b"ARROW1"  # of Arrow's file format; its stream format, which `datasets` writes, has none


def _kinds(annotation: Any) -> set[Any]:
    """The types of a field's value: str for texts and literals, anything else for what CSV holds as JSON."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is typing.Literal:
        return {str}
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(annotation))) - {type(None)}
    return {annotation}


KINDS = {name: _kinds(kind) for name, kind in typing.get_type_hints(PreferencePair).items()}
KINDS |= {name: _kinds(field.annotation) for name, field in PreferenceRow.model_fields.items()}


def read_parquet(path: pathlib.Path) -> Iterator[Located]:
    """Every row of a Parquet file. Raises `DataError` if it cannot be read."""
    import pyarrow.parquet as pq

    yield from _rows(path, "Parquet", lambda: pq.ParquetFile(path).iter_batches(batch_size=BATCH_ROWS))


def read_arrow(path: pathlib.Path) -> Iterator[Located]:
    """Every row of an Arrow file, of the file format (Feather) or the stream format. Raises `DataError` if it cannot be read."""
    import pyarrow as pa

    def batches() -> Iterator[Any]:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(len(FILE_MAGIC)) == FILE_MAGIC
            source.seek(0)
            if is_file:
                reader = pa.ipc.open_file(source)
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(source)

    yield from _rows(path, "Arrow", batches)


def _rows(path: pathlib.Path, kind: str, batches: Any) -> Iterator[Located]:
    import pyarrow as pa

    number = 0
    try:
        for batch in batches():
            for fields in plain_rows(batch):
                number += 1
                yield f"{path}: row {number}", fields
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as {kind} after row {number} ({reason}); write the file anew") from error


def plain_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table or record batch as dicts, a bounded number at a time."""
    for start in range(0, batch.num_rows, BATCH_ROWS):
        for row in batch.slice(start, BATCH_ROWS).to_pylist():
            yield {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"path", "bytes"} and value["bytes"] is None:
        return value["path"]
    return {name: _plain(item) for name, item in value.items() if item is not None}


_LONGEST_CELL = 2**31 - 1  # csv's own limit is 131,072 characters, which no other kind of file has


def read_csv(path: pathlib.Path) -> Iterator[Located]:
    """Every row of a CSV file (.tsv: separated by tabs) with a header line, in UTF-8.

    Cells are texts, and an empty cell is an absent field. A field of a vidalign row, or of a pair that a run wrote, that is no text
    (options, turns, scores, phrases) is written as JSON.

    Raises:
        DataError: the file is not UTF-8, or its header names a column twice or not at all.
    """
    delimiter = "\t" if path.suffix == ".tsv" else ","
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if header and (len(set(header)) < len(header) or "" in header):
                raise DataError(f"{path}:1: the header must name every column once, got {header}; correct the first line")
            last = reader.line_num
            for cells in reader:
                where, last = f"{path}:{last + 1}", reader.line_num
                if any(cells):
                    yield where, _csv_row(header, cells, where)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}:{reader.line_num} cannot be read as CSV ({error}); write the file anew, in UTF-8"
            ) from error


def _csv_row(header: list[str], cells: list[str], where: str) -> dict[str, Any] | RowError:
    if len(cells) != len(header):
        why = f"has {len(cells)} cells, but the header has {len(header)}"
        return RowError("row", why, "put texts with commas or line breaks in quotes", where)
    row: dict[str, Any] = {}
    for name, cell in zip(header, cells, strict=True):
        try:
            row |= {name: json.loads(cell) if _is_json(name, cell) else cell} if cell else {}
        except (ValueError, RecursionError):
            return RowError(
                name, f"is not JSON, got {cell[:60]!r}", 'write it as JSON, such as ["left", "right"] or 4.5', where
            )
    return row


def _is_json(name: str, cell: str) -> bool:
    kinds = KINDS.get(name, {str})
    return str not in kinds or (len(kinds) > 1 and cell.startswith(("[", "{")))


def csv_cells(rows: Iterable[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells from which `read_csv` makes the same rows."""
    rows = list(rows)
    header = list(dict.fromkeys(name for row in rows for name in row))
    return header, [[_cell(row.get(name)) for name in header] for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
