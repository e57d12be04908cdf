"""The lines of a JSONL file as JSON objects, each with its place, or with the reason why it is not an object."""

from __future__ import annotations

import codecs
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from vidalign.errors import RowError

BOM = "\ufeff".encode()
# Python's parser gives up at a depth that depends on who calls it. This limit is the same for every caller, and far beyond
# what a row needs.
MAX_DEPTH = 100
ONE_OBJECT = "write one JSON object per line"

_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

Located = tuple[str, dict[str, Any] | RowError]


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, of which JSON takes the last value of a name that stands twice. Raises `RowError` instead."""
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError("row", f"names {twice[:60]!r} twice in one object", "keep one of the two")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def read_lines(path: pathlib.Path) -> Iterator[Located]:
    """Every line that is not blank, in file order: its place "file:line" (from 1), and its object or what is wrong with it.

    The file is UTF-8, with or without a byte order mark.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = (line.removeprefix(BOM) if number == 1 else line).strip()
            if not line:
                continue
            where = f"{path}:{number}"
            try:
                yield where, _parse_line(line)
            except RowError as error:
                yield where, error.at(where)


def _parse_line(line: bytes) -> dict[str, Any]:
    if line.startswith(_COMPRESSED):
        raise RowError("row", "is compressed", "unpack the file first")
    if line.startswith(_UTF16) or line[:2].count(b"\0") == 1:
        raise RowError("row", "is text in UTF-16", "save the file as UTF-8")
    try:
        text = line.decode("utf-8")
        value, end = parse_value(text)
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        raise RowError("row", f"is not valid UTF-8 ({error.reason})", "save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise RowError("row", f"is not JSON ({error.msg} at column {error.colno})", ONE_OBJECT) from error
    return check_object(value)


def parse_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at character `start`, and where the text continues after it and any white space.

    Raises:
        json.JSONDecodeError: there is no JSON value.
        RowError: a number has more digits than Python reads, the value is nested more than `MAX_DEPTH` levels deep, or an object names
            a field twice.
    """
    too_deep = RowError("row", f"is nested more than {MAX_DEPTH} levels deep", ONE_OBJECT)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (json.JSONDecodeError, RowError):
        raise
    except RecursionError as error:
        raise too_deep from error
    except ValueError as error:
        why = f"holds a number with more than {sys.get_int_max_str_digits():,} digits"
        raise RowError("row", why, "shorten it, or write it as a text, in quotes") from error
    if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise too_deep
    return value, after_space(text, end)


def after_space(text: str, at: int) -> int:
    """The position of the first character from `at` on that is not JSON white space, or the end of the text."""
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def check_object(value: Any) -> dict[str, Any]:
    """The value itself, if it is a JSON object. Raises `RowError` otherwise."""
    if not isinstance(value, dict):
        fix = "write an object with named fields" + (
            "; a JSON array of rows is named .json" if isinstance(value, list) else ""
        )
        raise RowError("row", f"must be a JSON object, got {type(value).__name__}", fix)
    return value
