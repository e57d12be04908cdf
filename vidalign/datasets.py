"""Examples from JSONL, with every row checked. This module imports nothing heavy."""

from __future__ import annotations

import json
import pathlib

from vidalign.errors import DataError
from vidalign.types import Example

REQUIRED = ("id", "video", "question", "answer")
OPTIONAL = ("options", "category")


def read_examples(path: str | pathlib.Path, *, video_root: str | None = None, limit: int | None = None) -> list[Example]:
    """Read rows {"id", "video", "question", "answer", ["options", "category"]} in file order.

    A relative `video` is joined to `video_root` (default: the folder of the file). Whether each video exists and decodes
    is found out by the decode stage, which quarantines what it cannot use.

    Raises:
        DataError: missing or empty file; a malformed row, with file, line, field and fix; a duplicate id.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"no data file at {path}; data.train, data.eval and data.probe name JSONL files")
    root = pathlib.Path(video_root) if video_root is not None else path.parent
    examples: list[Example] = []
    line_of: dict[str, int] = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            example = _parse_row(line, f"{path}:{number}", root)
            if example.id in line_of:
                raise DataError(
                    f"{path}:{number}: id {example.id!r} was used at line {line_of[example.id]}; ids must be unique"
                )
            line_of[example.id] = number
            examples.append(example)
            if limit is not None and len(examples) == limit:
                break
    if not examples:
        raise DataError(f"{path} holds no rows; expected one JSON object a line with keys {', '.join(REQUIRED)}")
    return examples


def _parse_row(line: str, where: str, root: pathlib.Path) -> Example:
    try:
        row = json.loads(line.encode("utf-8", "surrogateescape").decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: the line is not valid UTF-8 ({error.reason}); save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not a JSON object ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row must be a JSON object, got {type(row).__name__}")
    for name in REQUIRED:
        if name not in row:
            raise DataError(f"{where}: missing field {name!r}; a row has {', '.join(REQUIRED)}")
        if not isinstance(row[name], str) or not row[name].strip():
            raise DataError(f"{where}: {name!r} must be a non-empty string, got {row[name]!r}")
    options = row.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DataError(f"{where}: 'options' must be a list of strings, got {options!r}")
    video = row["video"]
    if "://" not in video:
        video = str((root / video).absolute())
    return Example(
        id=row["id"],
        video=video,
        question=row["question"],
        answer=row["answer"],
        options=tuple(options),
        category=str(row.get("category") or ""),
    )
