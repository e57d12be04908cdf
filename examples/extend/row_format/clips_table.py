"""A row format of one's own: a table of clips of longer videos, as many annotation tools export it.

    vidalign data import --from clips_table:to_row clips.csv --out mine/train.jsonl

    source,start,end,prompt,reply,alternative,tag
    a.mp4,2.0,6.5,What happens?,A door opens.,A door closes.,doors

A format is a function of one row, as a dict, and a counter of notes. It takes out of the dict what it uses and returns a row of
vidalign (docs/data.md). What it leaves is counted in the summary as unused; what it notes is counted too, by its sentence. A column
that it takes with `pop` and that is not there is an error with the row's line, and so is a `RowError` that it raises.
"""

from __future__ import annotations

from typing import Any

from vidalign.data.formats.fields import Notes
from vidalign.errors import RowError


def to_row(fields: dict[str, Any], notes: Notes) -> dict[str, Any]:
    """A pair where there is an alternative, which is the worse one in these tables; else an example."""
    start, end = (fields.pop(name, None) for name in ("start", "end"))
    row = {"video": fields.pop("source"), "question": fields.pop("prompt"), "answer": fields.pop("reply")}
    if start is not None and end is not None:
        if float(end) <= float(start):
            raise RowError("end", f"is {end}, and the clip starts at {start}", "correct the times, or leave both out")
        row["clip"] = {"start": float(start), "end": float(end)}
    if tag := fields.pop("tag", None):
        row["category"] = tag
    if worse := fields.pop("alternative", None):
        return {**row, "chosen": row["answer"], "rejected": worse}
    notes["a row without an alternative, which is an example and no pair"] += 1
    return row
