"""What a training stage records for people: measurements, progress and TensorBoard events."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from vidalign import files, mirror, stored
from vidalign.line_log import LineLog

PUT_EVERY_S = 5.0  # of the progress of a run in a store


def whole_rows(text: str) -> list[dict[str, Any]]:
    """The rows of JSON lines, up to one that was cut off: by a full disk, or when its writer was killed."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class MetricsLog:
    """Writes `metrics.jsonl` (measurements), `progress.json` (every step) and, with `board`, TensorBoard events.

    Only rank 0 has one.
    """

    def __init__(self, stage: pathlib.Path, *, board: bool = True) -> None:
        self._stage = stage
        self._writes_board = board
        self._path = stage / "metrics.jsonl"
        self._started = time.monotonic()
        self._board: Any = None
        self._lines = LineLog(self._path)
        self._in_store, self._put_at = stored.of(stage) is not None, 0.0

    def rewind(self, step: int) -> None:
        """Remove what an interrupted run wrote after the checkpoint at `step`, and open the TensorBoard log."""
        mirror.fetched(self._path)  # rank 0 may have been on another node
        rows = whole_rows(self._path.read_text(encoding="utf-8")) if self._path.is_file() else []
        kept = [row for row in rows if row["step"] <= step] if step else []
        files.write_text_atomic(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._lines = LineLog(self._path)
        if self._writes_board:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._stage / "tensorboard"), purge_step=step + 1)

    def step(self, step: int, num_steps: int, values: dict[str, float | None]) -> None:
        """Record the progress and figures of one optimizer step."""
        self.progress("train", step, num_steps, {name: value for name, value in values.items() if value is not None})
        for name, value in values.items() if self._writes_board else ():
            if value is not None:
                self._board.add_scalar(f"train/{name}", value, step)

    def progress(self, phase: str, number: int, total: int, figures: Mapping[str, float] | None = None) -> None:
        """Say how far the "reference" (pairs) or "train" (optimizer steps) is, and with which figures."""
        row = json.dumps({"phase": phase, "step": number, "num_steps": total, "figures": figures or {}}).encode()
        if self._in_store and time.monotonic() - self._put_at < PUT_EVERY_S:
            return
        self._put_at = time.monotonic()
        # Only people read it, so no step waits for the disk.
        files.write_bytes_atomic(self._stage / "progress.json", row, durable=False)

    def measurement(self, row: dict[str, Any]) -> None:
        """Append a row of figures to `metrics.jsonl`; it must have a "step"."""
        row = {**row, "seconds": time.monotonic() - self._started}
        self._lines.add(json.dumps(row))
        if not self._writes_board:
            return
        for name, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(f"displacement/{name}", value, row["step"])
        self._board.flush()

    def put(self) -> None:
        """Have all that was recorded where the run is kept, if that is a store."""
        self._lines.put()
        mirror.put_loose(self._stage / "tensorboard")
