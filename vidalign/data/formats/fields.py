"""The columns of one row of a source: what counts as content, and which rows cannot be imported.

`Notes` counts what a source holds and a vidalign row does not, with one sentence for each, for the summary of an import.
"""

from __future__ import annotations

import collections
import json
from typing import Any, TypeAlias

from vidalign.errors import RowError

Fields: TypeAlias = dict[str, Any]
Notes = collections.Counter[str]


def has_content(value: Any) -> bool:
    """False for null and for empty texts, lists and objects. Zero and false are content."""
    return value is not None and value not in ("", [], {}, ())


def kind_of(value: Any) -> str:
    """The type of a value, for messages."""
    return "nothing" if value is None else type(value).__name__


def without_column(error: KeyError) -> RowError:
    """The error for a row that lacks a column which a format's function takes without asking."""
    return RowError(
        str(error.args[0] if error.args else "row"), "is missing, and the format asks for it", "add it, or leave the row out"
    )


def refuse_worse_only(fields: Fields, name: str) -> None:
    """Raises `RowError` for a row that holds a single response, marked as bad (false, 0, either of them as a text) or unclearly."""
    value = fields.get(name)
    marked = str(value).strip().lower()
    said = "false" if value is False else json.dumps(value, default=str)
    if marked not in ("none", "", "true", "1", "1.0", "false", "0", "0.0", "-1"):
        raise RowError(
            name,
            f"is {said}, which does not say whether the response is good",
            "write true or false, or leave the field out",
        )
    if marked in ("false", "0", "0.0", "-1"):
        why = f"is {said}: the row holds a bad response and no better one"
        raise RowError(name, why, "give both responses, or remove the row")
