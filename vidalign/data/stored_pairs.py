"""The pairs that a run wrote (`PreferencePair`, rounds/K/pairs) as rows of a data file: one rollout can train many objectives.

The row is what a pair says in a data file's words, so that the rules of rows hold for it too; the pair itself goes along with the
row, and training takes it as it is: marks, scores, kinds of responses, provenance.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from vidalign.data.shown import form_of
from vidalign.errors import RowError
from vidalign.types import PreferencePair
from vidalign.video.naming import visual_of

SIGN = frozenset({"example_id", "chosen", "provenance"})  # columns that only a stored pair has
EMPTY = {"video": "", "rejected": ""}  # of images alone; of supervised training. CSV leaves out what is empty
_FIELDS = {field.name: field for field in dataclasses.fields(PreferencePair)}
_TYPES = typing.get_type_hints(PreferencePair)
_ROW_FIELDS = ("system", "question", "answer", "category", "chosen", "rejected")


def is_stored(fields: dict[str, Any]) -> bool:
    """Whether a row is a pair that a run wrote."""
    return fields.keys() >= SIGN


def stored_pair(fields: dict[str, Any]) -> PreferencePair:
    """The pair itself. A field that is null has its default. Raises `RowError` for a field that is missing or of another type."""
    present = EMPTY | {name: value for name, value in fields.items() if name in _FIELDS and value is not None}
    for name, field in _FIELDS.items():
        if name not in present and field.default is dataclasses.MISSING:
            raise RowError(name, "is missing or null in a pair that a run wrote", "take the pairs from the run again")
        if name in present and not _fits(present[name], _TYPES[name]):
            why = f"is of type {type(present[name]).__name__} in a pair that a run wrote"
            raise RowError(name, why, "take the pairs from the run again")
    if present.get("rejected_videos"):
        raise RowError(
            "rejected_videos",
            "is of a pair over videos, whose clips belong to the run that made them",
            "take the rows that the run was made from and set recipe.clip_pairs, which makes such pairs again",
        )
    return PreferencePair.from_row(present)


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(kind))
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        return isinstance(value, list | tuple) and all(_fits(item, inner) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


def row_of(pair: PreferencePair, row_id: str) -> dict[str, Any]:
    """The fields of a vidalign row that say what a pair says. One without a rejected response becomes an example."""
    row: dict[str, Any] = {"id": row_id, **{name: getattr(pair, name) for name in _ROW_FIELDS}}
    row |= {"videos": [form_of(name) for name in pair.videos]} if pair.videos else form_of(pair.video) if pair.video else {}
    row["images"] = [visual_of(image).uris[0] for image in pair.images]
    row["turns"] = [turn.to_row() for turn in pair.turns]
    for side in ("chosen", "rejected"):
        for name, known in (("score", getattr(pair, f"{side}_reward")), ("win_rate", getattr(pair, f"{side}_win_rate"))):
            row[f"{side}_{name}"] = known if math.isfinite(known) else None
        row[f"{side}_phrases"] = [list(span) for span in getattr(pair, f"{side}_marks")]
    if not pair.rejected:
        row = {name: value for name, value in row.items() if not name.startswith(("chosen", "rejected"))}
    return row
