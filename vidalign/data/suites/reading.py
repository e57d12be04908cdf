"""The rows of a suite as its repository has them (JSON, JSONL, CSV, Parquet), checked field by field, and where its videos are.

A row that has not the published form is a `RowError` that names file, row, field and value; no row is left out.
"""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from vidalign.data.lines import BOM, after_space, parse_value
from vidalign.data.source import read_source
from vidalign.errors import DataError, RowError

LETTERS = "ABCDEFGHIJ"  # of options, in order
MAX_SHARE_AT_FAULT = 0.02  # of published rows none of whose options is the answer
VIDEO_SUFFIXES = (".mp4", ".MP4", ".avi", ".mov", ".mkv", ".webm", ".gif")


class Row:
    """One published row: its fields, its place, and what messages say of the form that it should have."""

    def __init__(self, where: str, fields: dict[str, Any], form: str) -> None:
        self.where, self.fields, self.form = where, fields, form

    def refuse(self, field: str, why: str) -> RowError:
        """The error for a field that is not as published."""
        return RowError(field, why, f"the rows must have the form of {self.form}", self.where)

    def text(self, name: str, *, blank: bool = False) -> str:
        """A text that is not blank; `blank`: it may be."""
        value = self._get(name)
        if not isinstance(value, str) or not (blank or value.strip()):
            raise self.refuse(name, f"must be a text, got {_short(value)}")
        return value

    def word(self, name: str) -> str:
        """A text or a whole number, as a text: ids are written in both ways."""
        value = self._get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self.text(name)

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        """A text that is one of `allowed`."""
        value = self.text(name)
        if value not in allowed:
            raise self.refuse(name, f"must be one of {', '.join(allowed)}, got {_short(value)}")
        return value

    def whole(self, name: str) -> int:
        """A whole number, in digits where the file has only texts."""
        value = self._get(name)
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.refuse(name, f"must be a whole number, got {_short(value)}")
        return value

    def seconds(self, name: str) -> float:
        """A number of seconds, not negative."""
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise self.refuse(name, f"must be a number of seconds, got {_short(value)}")
        return float(value)

    def texts(self, name: str, *, least: int = 2) -> tuple[str, ...]:
        """A list of at least `least` texts."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) < least or not all(isinstance(item, str) for item in value):
            raise self.refuse(name, f"must be a list of at least {least} texts, got {_short(value)}")
        return tuple(value)

    def row(self, name: str) -> Row:
        """An object inside of the row."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self.refuse(name, f"must be an object, got {_short(value)}")
        return Row(f"{self.where}, {name}", value, self.form)

    def rows(self, name: str) -> list[Row]:
        """A list of objects inside of the row."""
        value = self._get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.refuse(name, f"must be a list of objects, got {_short(value)}")
        return [Row(f"{self.where}, {name} {number}", item, self.form) for number, item in enumerate(value, start=1)]

    def has(self, name: str) -> bool:
        """Whether the row has a value for a field."""
        return self.fields.get(name) is not None

    def letters(self, name: str, options: Sequence[str]) -> str:
        """The letters of the options that a field repeats: several where options are equal, "" where it repeats none."""
        return letters_of(self.text(name, blank=True), options)

    def _get(self, name: str) -> Any:
        value = self.fields.get(name)
        if value is None:
            raise self.refuse(name, "is missing or null")
        return value


def rows_of(path: pathlib.Path, form: str, *, delimiter: str = ",") -> list[Row]:
    """The rows of a JSON array, JSONL, CSV or Parquet file. Raises `DataError` for a file or row that cannot be read."""
    found = []
    for where, fields in _csv_rows(path, delimiter) if path.suffix == ".csv" else read_source(path):
        if isinstance(fields, RowError):
            raise fields.at(where)
        found.append(Row(where, fields, form))
    if not found:
        raise DataError(f"{path} holds no rows; give it as {form} has it")
    return found


def object_of(path: pathlib.Path, form: str) -> Row:
    """The one JSON object that a file holds. Raises `DataError`."""
    try:
        text = path.read_bytes().removeprefix(BOM).decode("utf-8")
        value, end = parse_value(text, after_space(text, 0))
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 ({error.reason}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno})") from error
    except RowError as error:
        raise error.at(str(path)) from error
    if not isinstance(value, dict) or not value:
        raise DataError(f"{path} must hold a JSON object with entries, got {_short(value)}; give it as {form} has it")
    return Row(str(path), value, form)


def find(folder: pathlib.Path, patterns: Sequence[str], form: str) -> list[pathlib.Path]:
    """The files of the first pattern that any file matches, sorted by name. Raises `DataError` where none does."""
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if found:
            return found
    what = "is not a folder" if not folder.is_dir() else f"holds no {' and no '.join(patterns)}"
    raise DataError(f"{folder} {what}; put {form} there, as it is published")


class Videos:
    """Where a suite's videos are: the folders below `folder` in which they are looked for, in order."""

    def __init__(self, folder: pathlib.Path, places: Sequence[str]) -> None:
        self._folder = folder.absolute()
        self._places = places
        self._by_name: dict[str, pathlib.Path] | None = None

    def find(self, name: str, *, suffixes: Sequence[str] = (), anywhere: bool = False) -> str:
        """The path of a video (or folder of frames) of this name with the first suffix that exists; where it should be if none does.

        `anywhere`: a file of this name in any other folder below will do.
        """
        tried = [self._folder / place / f"{name}{suffix}" for place in self._places for suffix in suffixes or ("",)]
        for path in tried:
            if path.exists():
                return str(path)
        if anywhere:
            if self._by_name is None:
                self._by_name = {
                    path.name: path for path in sorted(self._folder.rglob("*")) if path.suffix in VIDEO_SUFFIXES
                }
            for suffix in suffixes or ("",):
                if f"{name}{suffix}" in self._by_name:
                    return str(self._by_name[f"{name}{suffix}"])
        return str(tried[0])


def letters_of(text: str, options: Sequence[str]) -> str:
    """The letters of the options that are this text; "" where it is blank."""
    text = text.strip()
    return "".join(letter for letter, option in zip(LETTERS, options, strict=False) if text and option.strip() == text)


def answerless(row: Row) -> RowError:
    """The error for a row none of whose options is the answer."""
    return row.refuse("answer", f"must be one of the options, got {_short(row.fields.get('answer'))}")


def refuse_many(faults: Sequence[RowError], num_rows: int) -> None:
    """Raises the first of the errors where they are more than a few.

    Published files have single rows none of whose options is the answer. The suites' own scripts count replies to them as wrong, and
    so do these tables, which say how many there are; where there are many, the file is not what was published.
    """
    if len(faults) > MAX_SHARE_AT_FAULT * num_rows:
        raise faults[0]


def is_missing(video: str) -> bool:
    """Whether there is no file, and no folder, at a path."""
    return not os.path.exists(video)


def _csv_rows(path: pathlib.Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any] | RowError]]:
    wrong = RowError("row", "has more or fewer columns than the first line names", "put texts with commas in quotes")
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for number, fields in enumerate(reader, start=1):
                yield f"{path}: row {number}", wrong if None in fields or None in fields.values() else fields
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}:{reader.line_num} cannot be read as CSV ({error}); give the file as it is published, in UTF-8"
            ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
