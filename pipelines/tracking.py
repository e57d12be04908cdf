"""A run's trackers: what the run's folder holds of training, evaluation and report, sent while it grows and at the end.

    rounds/N/train/metrics.jsonl ─► curves: train/…, displacement/…                          every few seconds
    summary.json, suites/        ─► figures: eval/…, pairs/…, suite/…  ┐
    config.yaml, report/         ─► files                              ┴ at the end of a command

    tracking.json  what each tracker knows the run by, and what it has: a stopped run continues the same curves, and a tracker that is
                   named later is sent all of it

Only the driver talks to trackers, so that no worker needs their packages or keys. A tracker that fails does not end a run.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipelines import progress
from pipelines.suites import tables
from pipelines.trackers import TRACKERS, Tracker
from vidalign import files, mirror, room
from vidalign.config.run import RunConfig
from vidalign.files import RunFolder
from vidalign.types import stable_hash

NOTED = "tracking.json"
EVERY_S = 5.0
# What a row of metrics.jsonl holds of the optimizer; everything else is measured on the monitored pairs and the probe.
OF_TRAINING = frozenset({"loss", "grad_norm", "learning_rate", "epoch"})


def curves(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a measurement by the names that trackers show: train/loss, displacement/chosen_logp …"""
    return {
        f"{'train' if name in OF_TRAINING else 'displacement'}/{name}": float(value)
        for name, value in row.items()
        if name not in ("step", "seconds") and isinstance(value, int | float)
    }


def results(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a whole run: eval/aligned, eval/colour/aligned, eval/figures/aligned/f1, pairs/kept, wall_s/train …"""
    accuracy = summary.get("accuracy") or {}
    tables = {"": accuracy, **{f"{name}/": row for name, row in (accuracy.get("by_category") or {}).items()}}
    found = {
        f"eval/{name}{model}": row[model]
        for name, row in tables.items()
        for model in ("base", "aligned", "blind")
        if isinstance(row.get(model), int | float)
    }
    for model, figures in (accuracy.get("figures") or {}).items():
        found |= {f"eval/figures/{model}/{name}": value for name, value in figures.items()}
    for part in ("pairs", "groups"):
        if kept := summary.get(part):
            found[f"{part}/kept"] = kept["kept"]
    found |= {f"wall_s/{name}": value for name, value in (summary.get("wall_s") or {}).items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def of_suites(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The figures of published suites by the names that trackers show: suite/mvbench/overall/aligned …"""
    return {
        f"suite/{suite['name']}/{score['measure']}/{model}": float(score["value"])
        for suite in scores
        for model, found in suite["models"].items()
        for score in found["scores"]
        if score["value"] is not None
    }


class Tracking:
    """The trackers of one run. Each is opened when there is something to send, and left out once it has failed."""

    def __init__(self, config: RunConfig, run: RunFolder) -> None:
        self._config, self._run = config, run
        self._path = pathlib.Path(run.root) / NOTED
        self._noted: dict[str, Any] = files.read_json(self._path) if self._path.is_file() else {}
        self._open: dict[str, Tracker] = {}
        self._failed: set[str] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Send curves while the block runs."""
        names = [name for name in self._config.track if TRACKERS[name].takes_curves]
        stop = threading.Event()

        def follow() -> None:
            while not stop.wait(EVERY_S):
                self._for_each(names, self._send_curves)

        thread = threading.Thread(target=follow, name="trackers", daemon=True)
        if names:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if names:
                thread.join()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Send what is left, and the results and files of the run where they are not those that a tracker has; then close all."""
        values = results(summary)
        paths = [self._run.config, self._run.summary, self._run.report / "index.html"]
        there = [path for path in map(pathlib.Path, paths) if path.is_file()]
        state = stable_hash([values, [path.name for path in there]])
        values |= of_suites(self._suites())

        def send(name: str) -> None:
            if TRACKERS[name].takes_curves:
                self._send_curves(name)
            noted = self._noted.get(name, {})
            new = {figure: value for figure, value in values.items() if noted.get("figures", {}).get(figure) != value}
            as_before = noted.get("finished") == state
            if new or not as_before:
                self._tracker(name).finish(new, [] if as_before else there)
                self._noted[name] |= {"finished": state, "figures": values}

        self._for_each(self._config.track, send)
        self._for_each(list(self._open), lambda name: self._open.pop(name).close())
        if self._noted:
            files.write_json(self._path, self._noted)
        for name in room.LOOSE:
            mirror.put_loose(pathlib.Path(self._run.root) / name)

    def _suites(self) -> list[dict[str, Any]]:
        """What every suite says of the run; of the last round, where several rounds were asked."""
        folders = [pathlib.Path(self._run.stage("suites", index)) for index in range(self._config.rounds)]
        return [{"name": name, **scores} for name, scores in tables.kept(folders)]

    def _for_each(self, names: Sequence[str], act: Callable[[str], None]) -> None:
        """A tracker is another's code and another's server: whatever goes wrong there is said, and the run goes on."""
        with self._lock:
            for name in names:
                if name in self._failed:
                    continue
                try:
                    with contextlib.redirect_stdout(io.StringIO()):  # where this command prints its results
                        act(name)
                except Exception as error:
                    self._failed.add(name)
                    why = " ".join(str(error).split())[:300] or type(error).__name__
                    progress.warn(f"{name} failed ({why}); the run goes on, and the next command sends what is missing")

    def _tracker(self, name: str) -> Tracker:
        if name not in self._open:
            known = self._noted.setdefault(name, {"id": f"new-{uuid.uuid4().hex[:12]}", "steps": {}})
            config = self._config.model_dump(mode="json")
            opened = TRACKERS[name](pathlib.Path(self._run.root), self._run.name, known["id"], config)
            self._open[name] = opened
            known["id"] = opened.id
            files.write_json(self._path, self._noted)
        return self._open[name]

    def _send_curves(self, name: str) -> None:
        """The measurements that a tracker does not have yet. Steps count on from round to round."""
        before = 0
        for index in range(self._config.rounds):
            rows = _measured(pathlib.Path(self._run.stage("train", index)) / "metrics.jsonl")
            sent = self._noted.get(name, {}).get("steps", {}).get(str(index), -1)
            for row in rows:
                if row["step"] > sent:
                    self._tracker(name).log({**curves(row), "round": float(index)}, before + row["step"])
                    self._noted[name]["steps"][str(index)] = row["step"]
            if rows and rows[-1]["step"] > sent:
                files.write_json(self._path, self._noted)  # a command may be killed at any time
            before += max((row["step"] for row in rows), default=0) + 1


def _measured(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a log that may be in the middle of being written."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
