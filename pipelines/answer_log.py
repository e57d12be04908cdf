"""The results of one evaluation as they arrive, one JSON line each, from which an evaluation that was stopped continues."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from vidalign import files
from vidalign.errors import ConfigError
from vidalign.line_log import LineLog
from vidalign.stored import shown
from vidalign.types import EvalAnswer, Example, QuarantineRow, stable_hash


@dataclasses.dataclass(kw_only=True)
class AnswerLog:
    """Results so far, one JSON line each, after a line that says which questions they answer."""

    path: pathlib.Path
    results: dict[str, EvalAnswer | QuarantineRow]
    keys: dict[str, str]
    lines: LineLog = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.lines = LineLog(self.path)

    @classmethod
    def open(cls, path: pathlib.Path, settings: dict[str, Any]) -> AnswerLog:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # the process was killed while it wrote this line
            files.write_text_atomic(path, "".join(lines))
        if not lines:
            files.write_text_atomic(path, json.dumps(settings) + "\n")
            return cls(path=path, results={}, keys={})
        begun_with = json.loads(lines[0])
        if begun_with != settings:
            changed = ", ".join(key for key in settings if begun_with.get(key) != settings[key])
            raise ConfigError(f"{shown(path)} was begun with another {changed}; delete the file to evaluate again")
        log = cls(path=path, results={}, keys={})
        for line in lines[1:]:
            row = json.loads(line)
            record = EvalAnswer if "answer" in row["result"] else QuarantineRow
            log.results[row["example_id"]] = record.from_row(row["result"])
            log.keys[row["example_id"]] = row["example"]
        return log

    def holds(self, example: Example) -> bool:
        """Whether there is a result for exactly this question."""
        return self.keys.get(example.id) == stable_hash(example.to_row())

    def add(self, example: Example, result: EvalAnswer | QuarantineRow) -> None:
        key = stable_hash(example.to_row())
        self.lines.add(json.dumps({"example_id": example.id, "example": key, "result": result.to_row()}))
        self.results[example.id], self.keys[example.id] = result, key


def rename_questions(path: pathlib.Path, former: Iterable[Sequence[Example]], examples: Sequence[Example]) -> None:
    """Let a log's answers to questions on videos that were at other places (`former`, each like `examples`) be to those of now."""
    keys = {stable_hash(old.to_row()): new for each in former for old, new in zip(each, examples, strict=True) if old != new}
    if not keys:
        return
    first, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    for row in rows:
        if (example := keys.get(row["example"])) is not None:
            row["example"] = stable_hash(example.to_row())
            shown = {} if "uri" in row["result"] else example.context_fields()
            row["result"] |= {name: value for name, value in shown.items() if name in row["result"]}
    files.write_text_atomic(path, first + "".join(json.dumps(row) + "\n" for row in rows))
