"""What a run's folder shows while the run goes on: stages, curves, newest pairs and responses, quarantine. Only reads.

Files may be absent, torn or replaced at any moment: what cannot be read now is left out, and is there the next time.
"""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster import lease
from pipelines.stages.base import BEGUN, MANIFEST
from vidalign import files, mirror
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.types import PreferencePair, QuarantineRow

FETCH_EVERY_S = 10.0  # of a run in a store
NUM_PAIRS, NUM_RESPONSES, NUM_QUARANTINED, NUM_POINTS = 12, 8, 200, 400
IN_A_ROUND = (
    ("rollout", "responses"),
    ("pairs", "pairs"),
    ("train", "train"),
    ("value", "value"),
    ("evaluate", "eval"),
    ("scores", "scores"),
)
CURVES = (
    "loss",
    "learning_rate",
    "grad_norm",
    "chosen_logp",
    "rejected_logp",
    "truth_logp",
    "margin",
    "accuracy",
    "both_fell",
)


class Watched:
    """One run. Files that do not grow are read once each."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._fetched_at = run, -FETCH_EVERY_S
        self._read: dict[pathlib.Path, tuple[float, list[dict[str, Any]]]] = {}

    def state(self) -> dict[str, Any]:
        """Everything that the page shows, as JSON values."""
        if time.monotonic() - self._fetched_at >= FETCH_EVERY_S:
            with contextlib.suppress(DataError, OSError):  # a store that does not answer for a moment
                mirror.refresh(self._run.root)
            self._fetched_at = time.monotonic()
        rounds = self._rounds()
        last = rounds[-1] if rounds else 0
        summary = _object(self._run.summary)
        return {
            "name": self._run.name,
            "folder": str(self._run),
            "now": time.time(),
            "driver": _driver(self._run.root),
            "stages": [stage for index in rounds for stage in self._stages(index)],
            "wall_s": _object(self._run.root / "wall_s.json"),
            "curves": [{"round": index, "rows": rows} for index in rounds if (rows := self._curves(index))],
            "pairs": self._pairs(last),
            "responses": self._responses(last),
            "quarantine": self._quarantine(rounds),
            "dropped": _object(self._run.stage("pairs", last) / MANIFEST).get("dropped") or {},
            "warnings": summary.get("warnings") or [],
            "accuracy": {name: (summary.get("accuracy") or {}).get(name) for name in ("base", "aligned", "blind")},
        }

    def _rounds(self) -> list[int]:
        folder = self._run.root / "rounds"
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []

    def _stages(self, index: int) -> Iterator[dict[str, Any]]:
        for name, folder in IN_A_ROUND:
            place = self._run.stage(folder, index)
            begun, finished = (place / BEGUN).is_file(), (place / MANIFEST).is_file()
            if name in ("value", "evaluate", "scores") and not begun and not finished:
                continue  # only some rounds have them
            if name == "train" and (self._run.stage("value", index) / BEGUN).is_file():
                continue  # its training is that of a value model
            state = "finished" if finished else "begun" if begun else "waiting"
            yield {"round": index, "name": name, "state": state, "done": "" if finished else self._done(name, place)}

    def _done(self, name: str, place: pathlib.Path) -> str:
        """How far an unfinished stage is, in words."""
        if name == "rollout":
            made = len(list((place / "parts").glob("*.json"))) if (place / "parts").is_dir() else 0
            return f"{made:,} chunks" if made else ""
        if name in ("train", "value") and (row := _object(place / "progress.json")):
            return f"{row.get('phase', '')} {row.get('step', 0):,} of {row.get('num_steps', 0):,}"
        if name == "evaluate":
            counts = {path.stem: sum(1 for _ in _lines(path)) for path in sorted(place.glob("*.jsonl"))}
            answers = [
                f"{model} {max(0, count - 1):,} answers" for model, count in counts.items()
            ]  # after a line of settings
            return ", ".join(answers) or "the endpoint starts"
        return ""

    def _curves(self, index: int) -> list[dict[str, float]]:
        rows: dict[int, dict[str, float]] = {}
        for line in _lines(self._run.stage("train", index) / "metrics.jsonl"):
            with contextlib.suppress(json.JSONDecodeError, KeyError, TypeError):
                row = json.loads(line)
                known = {name: row.get(name) for name in ("step", *CURVES)}
                rows[row["step"]] = {name: x for name, x in known.items() if isinstance(x, int | float) and math.isfinite(x)}
        found = [rows[step] for step in sorted(rows)]
        every = math.ceil(len(found) / NUM_POINTS) or 1
        return [row for at, row in enumerate(found) if at % every == 0 or at == len(found) - 1]

    def _pairs(self, index: int) -> list[dict[str, Any]]:
        return self._once(self._run.stage("pairs", index) / "pairs.parquet", _last_pairs)

    def _responses(self, index: int) -> list[dict[str, Any]]:
        parts = sorted((self._run.stage("responses", index) / "parts").glob("*.parquet"), key=_changed)
        return self._once(parts[-1], _last_responses) if parts else []

    def _quarantine(self, rounds: Sequence[int]) -> list[dict[str, Any]]:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for index in rounds:
            parts = sorted((self._run.stage("responses", index) / "parts").glob("*.json"))
            places = [(part, _undecoded) for part in parts]
            places.append((self._run.stage("quarantine", index) / "quarantine.parquet", _quarantined))
            for path, reads in places:
                rows |= {(row["uri"], row["reason"]): row for row in self._once(path, reads)}
        return list(rows.values())[-NUM_QUARANTINED:]

    def _once(self, path: pathlib.Path, reads: Callable[[pathlib.Path], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """What a file holds, read again only when it has changed; what it held before where it cannot be read now."""
        changed = _changed(path)
        known = self._read.get(path, (0.0, []))
        if changed and changed != known[0]:
            with contextlib.suppress(DataError, OSError, ValueError, KeyError, TypeError):
                known = self._read[path] = (changed, reads(path))
        return known[1]


def _driver(root: pathlib.Path) -> dict[str, Any]:
    """The command that works on the run, and whether it lives; None where another machine would know."""
    _, found = lease.newest(root / lease.FOLDER)
    if not found:
        return {"command": "", "is_alive": False}
    alive = False if found.get("ended") else lease.is_owner_alive(lease.owner_of(found))
    return {"command": found.get("command", ""), "host": found.get("host", ""), "is_alive": alive}


def _last_pairs(path: pathlib.Path) -> list[dict[str, Any]]:
    names = ("question", "answer", "chosen", "rejected", "category", "video")
    return [
        {name: getattr(pair, name) for name in names} for pair in files.read_table(path, PreferencePair)[-NUM_PAIRS:][::-1]
    ]


def _last_responses(path: pathlib.Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["example_id", "kind", "text"])
    return table.slice(max(0, len(table) - NUM_RESPONSES)).to_pylist()[::-1]


def _undecoded(path: pathlib.Path) -> list[dict[str, Any]]:
    rows = files.read_object(path)["decoded"]
    return [{"uri": row["video"], "reason": row["reason"], "message": row["message"]} for row in rows if row["reason"]]


def _quarantined(path: pathlib.Path) -> list[dict[str, Any]]:
    return [row.to_row() for row in files.read_table(path, QuarantineRow)]


def _changed(path: pathlib.Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _object(path: pathlib.Path) -> Mapping[str, Any]:
    with contextlib.suppress(DataError, OSError):
        return files.read_object(path) if path.is_file() else {}
    return {}


def _lines(path: pathlib.Path) -> list[str]:
    """The whole lines of a file that may be in the middle of being written."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    except (OSError, UnicodeDecodeError):
        return []
