"""The log of promotions: RUN/serving/promotions.jsonl, a line for each step.

    {"time", "who", "step", "model", "version", "source", "from", "to", "outcome", "why"}

`from` and `to` are the versions that answered `model` before and after the step.
"""

from __future__ import annotations

import datetime
import json
import pathlib

FILE = pathlib.Path("serving") / "promotions.jsonl"
DONE, REFUSED, AUTOMATIC = "done", "refused", "automatic"


def now() -> str:
    """The time of a step."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def note(run: str, **step: str) -> None:
    """Add a line. `run`: the run's folder; "" for a version that has none."""
    if not run:
        return
    path = pathlib.Path(run) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": now(), **step}) + "\n")
