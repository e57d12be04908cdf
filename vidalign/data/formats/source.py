"""Rows of a file: JSON objects a line, a JSON array, or Parquet."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from vidalign.errors import DataError, RowError

Located = tuple[str, dict[str, Any] | RowError]


def read_source(path: str | pathlib.Path) -> Iterator[Located]:
    """Every row with where it stands, "file:line" or "file: row n" (from 1), in file order; a `RowError` for one that is none.

    A file that begins with "[" is one JSON array; a name that ends in .parquet is Parquet; all else is one object a line.

    Raises:
        DataError: no such file, or one that cannot be read as a whole.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"no data file at {path}; give a JSONL, JSON or Parquet file")
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    with path.open("rb") as file:
        is_array = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    return _array_rows(path) if is_array else read_lines(path)


def read_lines(path: pathlib.Path) -> Iterator[Located]:
    """Rows of a JSONL file. Empty lines are no rows."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, _parse_object(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, where)


def _parse_object(line: bytes, where: str) -> dict[str, Any] | RowError:
    try:
        row = json.loads(line.strip())
    except UnicodeDecodeError as error:
        return RowError("row", f"is not valid UTF-8 ({error.reason})", "save the file as UTF-8", where)
    except json.JSONDecodeError as error:
        return RowError("row", f"is not JSON ({error.msg} at column {error.colno})", "write one JSON object a line", where)
    return _object(row, where)


def _object(row: Any, where: str) -> dict[str, Any] | RowError:
    if isinstance(row, dict):
        return row
    return RowError("row", f"must be a JSON object, got {type(row).__name__}", "write an object with named fields", where)


def _array_rows(path: pathlib.Path) -> Iterator[Located]:
    try:
        rows = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 ({error.reason}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno}); a source is a JSON array of "
            "objects, or one object a line"
        ) from error
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        yield where, _object(row, where)


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
        raise DataError(f"{path} cannot be read as Parquet after row {number} ({reason}); write the file again") from error
