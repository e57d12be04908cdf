"""The log of promotions: RUN/serving/promotions.jsonl, a line for each step.

    {"time", "who", "step", "model", "version", "source", "from", "to", "outcome", "why"}

Of a run in an object store, which cannot append, each step is a file of its own, RUN/serving/promotions/TIME.jsonl.

`from` and `to` are the versions that answered `model` before and after the step.
"""

from __future__ import annotations

import datetime
import json
import pathlib
import secrets

from vidalign import files, stored

FILE = pathlib.Path("serving") / "promotions.jsonl"
DONE, REFUSED, AUTOMATIC = "done", "refused", "automatic"


def now() -> str:
    """The time of a step."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")


def note(run: str, **step: str) -> None:
    """Add a line. `run`: the run's folder; "" for a version that has none."""
    if not run:
        return
    path, line = pathlib.Path(stored.here(run)) / FILE, json.dumps({"time": now(), **step}) + "\n"
    if stored.of(path) is not None:
        files.write_text_atomic(path.with_suffix("") / f"{now()}-{secrets.token_hex(4)}.jsonl", line)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line)
