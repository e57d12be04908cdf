"""The rows of a source file: one JSON object per line, a JSON array, or Parquet."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

from vidalign.data.lines import BOM, Located, after_space, check_object, parse_value, read_lines
from vidalign.errors import DataError, RowError


def read_source(path: str | pathlib.Path) -> Iterator[Located]:
    """Every row in file order with its place, "file:line" or "file: row n" (from 1); a `RowError` in place of a broken row.

    A file that begins with "[" is a JSON array, one whose name ends in .parquet is Parquet, and any other has one object per line.

    Raises:
        DataError: there is no such file, or it cannot be read at all.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"no data file at {path}; give a JSONL, JSON or Parquet file")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    with path.open("rb") as file:
        is_array = file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")
    return _array_rows(path) if is_array else read_lines(path)


def _array_rows(path: pathlib.Path) -> Iterator[Located]:
    try:
        text = path.read_bytes().removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 ({error.reason}); save it as UTF-8") from error
    at, number = after_space(text, text.index("[") + 1), 0
    more = not text.startswith("]", at)
    while more:
        try:
            value, end = parse_value(text, at)
            more = text.startswith(",", end)
            if not more and not text.startswith("]", end):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        except json.JSONDecodeError as error:
            raise _not_json(path, error) from error
        except RowError as error:
            raise error.at(f"{path}:{text.count(chr(10), 0, at) + 1}") from error
        number += 1
        where = f"{path}: row {number}"
        try:
            yield where, check_object(value)
        except RowError as error:
            yield where, error.at(where)
        at = after_space(text, end + 1) if more else end
    after = after_space(text, at + 1)
    if after < len(text):
        raise _not_json(path, json.JSONDecodeError("Extra data", text, after))


def _not_json(path: pathlib.Path, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno}); a source is a JSON array of "
        "objects, or one object per line"
    )


def _parquet_rows(path: pathlib.Path) -> Iterator[Located]:
    import pyarrow
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as Parquet after row {number} ({reason}); write the file anew") from error
