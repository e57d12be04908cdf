"""Rows written as the kind of file that a name asks for: .jsonl, .json (an array), .parquet, .csv or .tsv."""

from __future__ import annotations

import csv
import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from vidalign.data.tables import csv_cells
from vidalign.errors import DataError
from vidalign.files import write_bytes_atomic, write_text_atomic

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
Row = dict[str, Any]


def write_rows(path: pathlib.Path, rows: Sequence[Row], *, default: str = ".jsonl") -> None:
    """Write rows atomically. A name without a known suffix is written as `default`.

    Raises:
        DataError: Parquet cannot hold the rows, because a field is of one type in one row and of another in the next.
    """
    suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else default
    if suffix == ".parquet":
        write_bytes_atomic(path, _parquet(path, rows))
    elif suffix in (".csv", ".tsv"):
        text = io.StringIO(newline="")
        header, cells = csv_cells([_finite(row) for row in rows])
        csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",").writerows([header, *cells])
        write_text_atomic(path, text.getvalue())
    elif suffix == ".json":
        write_text_atomic(path, "[\n" + ",\n".join(map(_json, rows)) + "\n]\n")
    else:
        write_text_atomic(path, "".join(f"{_json(row)}\n" for row in rows))


def _parquet(path: pathlib.Path, rows: Sequence[Row]) -> memoryview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict.fromkeys(name for row in rows for name in row)  # pyarrow would take those of the first row
    try:
        table = pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows])
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: these rows do not fit Parquet ({' '.join(str(error).split())}); write a .jsonl file"
        ) from error
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return memoryview(sink.getvalue())


def _json(row: Row) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)


def _finite(row: Row) -> Row:
    """NaN, which stands for an unknown score, as null, since JSON has none."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
