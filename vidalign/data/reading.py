"""Examples and given pairs from JSONL, with every row checked. This module imports nothing heavy."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from vidalign.data.rows import TAG, PreferenceRow, parse_row
from vidalign.errors import DataError
from vidalign.recipes import phrases
from vidalign.types import Example, PreferencePair, stable_hash

REQUIRED = ("id", "video", "question", "answer")
OPTIONAL = ("options", "category", "caption")


def read_examples(path: str | pathlib.Path, *, video_root: str | None = None, limit: int | None = None) -> list[Example]:
    """Read rows {"id", "video", "question", "answer", ["options", "category", "caption"]} in file order.

    A relative `video` is joined to `video_root` (default: the folder of the file). Whether each video exists and decodes
    is found out by the decode stage, which quarantines what it cannot use. Preference rows count as examples too.

    Raises:
        DataError: missing or empty file; a malformed row, with file, line, field and fix; a duplicate id.
    """
    return [example for example, _, _ in _read(path, video_root, limit)]


def read_pairs(
    path: str | pathlib.Path, *, video_root: str | None = None, limit: int | None = None
) -> tuple[list[Example], list[PreferencePair]]:
    """Read pairs that are already made: the rows of `read_examples` with `chosen` and `rejected`, and the fields of
    `vidalign.data.rows.PreferenceRow`. Returns each row as an example and as a pair.

    A row without the two becomes a pair of its answer and an empty rejected response, on which only objective sft can be
    trained. A row without phrases is marked where its two sides differ.

    Raises:
        DataError: as `read_examples`, and for what a preference row breaks.
    """
    examples, pairs = [], []
    for example, row, where in _read(path, video_root, limit):
        examples.append(example)
        pairs.append(_given_pair(example, row, where))
    return examples, pairs


def _given_pair(example: Example, fields: dict[str, Any], where: str) -> PreferencePair:
    chosen, rejected, rewards, marks = example.answer, "", [math.nan, math.nan], None
    if "chosen" in fields or "rejected" in fields:
        row, errors = parse_row(fields)
        if errors or not isinstance(row, PreferenceRow):
            raise DataError(f"{where}: " + "; ".join(f"{e.field!r} {e.why}; {e.fix}" for e in errors))
        chosen, rejected = row.chosen, row.rejected
        rewards = [math.nan if score is None else score for score in (row.chosen_score, row.rejected_score)]
        marks = tuple(
            phrases.check_marks(text, spans, where)
            for text, spans in ((chosen, row.chosen_phrases), (rejected, row.rejected_phrases))
        )
    if marks is None or not any(marks):
        marks = phrases.differing_marks(chosen, rejected) if rejected else ((), ())
    return PreferencePair(
        id=stable_hash([example.id, chosen, rejected]),
        example_id=example.id,
        video=example.video,
        question=example.question,
        answer=example.answer,
        category=example.category,
        chosen=chosen,
        rejected=rejected,
        chosen_marks=marks[0],
        rejected_marks=marks[1],
        chosen_reward=rewards[0],
        rejected_reward=rewards[1],
        provenance=json.dumps({"recipe": "given", "source": where}, ensure_ascii=False),
    )


def _read(
    path: str | pathlib.Path, video_root: str | None, limit: int | None
) -> Iterator[tuple[Example, dict[str, Any], str]]:
    """(example, its row, "file:line") of every line, in order."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise DataError(f"no data file at {path}; data.train, data.eval and data.probe name JSONL files")
    root = pathlib.Path(video_root) if video_root is not None else path.parent
    line_of: dict[str, int] = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            example, row = _parse_row(line, f"{path}:{number}", root)
            if example.id in line_of:
                raise DataError(
                    f"{path}:{number}: id {example.id!r} was used at line {line_of[example.id]}; ids must be unique"
                )
            line_of[example.id] = number
            yield example, row, f"{path}:{number}"
            if limit is not None and len(line_of) == limit:
                break
    if not line_of:
        raise DataError(f"{path} holds no rows; expected one JSON object a line with keys {', '.join(REQUIRED)}")


def _parse_row(line: str, where: str, root: pathlib.Path) -> tuple[Example, dict[str, Any]]:
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
    if tags := TAG.findall(row["question"]):
        raise DataError(
            f"{where}: 'question' holds the literal {tags[0]}; remove it, for the model's chat template puts the video first "
            "(vidalign data import does so)"
        )
    options = row.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DataError(f"{where}: 'options' must be a list of strings, got {options!r}")
    video = row["video"]
    if "://" not in video:
        video = str((root / video).absolute())
    example = Example(
        id=row["id"],
        video=video,
        question=row["question"],
        answer=row["answer"],
        options=tuple(options),
        category=str(row.get("category") or ""),
        caption=str(row.get("caption") or ""),
    )
    return example, row
