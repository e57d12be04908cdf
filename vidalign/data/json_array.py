"""The rows of a JSON array of objects, each with its place, or with the reason why it is not an object."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator

from vidalign.data.lines import BOM, Located, after_space, check_object, parse_value
from vidalign.errors import DataError, RowError


def is_array(path: pathlib.Path) -> bool:
    """Whether a file begins with "["."""
    with path.open("rb") as file:
        return file.read(4096).removeprefix(BOM).lstrip().startswith(b"[")


def read_array(path: pathlib.Path) -> Iterator[Located]:
    """Every row of the array with its place, "file: row n" (from 1); a `RowError` in place of one that is no object.

    Raises:
        DataError: the file is not UTF-8, or not JSON.
    """
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
        f"{path}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno}); a data file is a JSON array of "
        "objects, or one object per line"
    )
