"""ms-swift (https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html).

    messages, the last of which is the response (in a pair, the chosen one)
    rejected_response, a text or messages; or rejected_messages, a conversation that repeats the prompt
    query and response, the older names of a question and its response

Videos are in the column `videos`, and a literal <video> tag in the text says where each belongs.
"""

from __future__ import annotations

from vidalign.data.formats.chat import SourceRow
from vidalign.data.formats.exporting import conversation, more_columns
from vidalign.data.formats.fields import Fields, Notes, has_content, refuse_worse_only
from vidalign.data.formats.media import Kind, medium
from vidalign.data.formats.messages import Turn, response_text, split_conversation
from vidalign.errors import RowError

_AGAIN: tuple[tuple[str, Kind], ...] = (("rejected_videos", "video"), ("rejected_images", "image"))


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    row = SourceRow(fields, notes)
    name, prompt, answer = _conversation(row)
    prompt = row.with_context(prompt)
    rejected = _rejected(row, prompt)
    if rejected is None:
        refuse_worse_only(fields, "label")
        return row.example(prompt, name, answer)
    for name, kind in _AGAIN:
        again = fields.pop(name, None)
        listed = again if isinstance(again, list) else [again]
        shown = [item for item in row.media if item.kind == kind]
        if has_content(again) and [medium(item, name, notes, kind) for item in listed] != shown:
            raise RowError(
                name, f"differ from the row's {kind}s", "a pair shows the same for both responses: remove the row"
            )
    return row.pair(prompt, name, answer, rejected)


def _conversation(row: SourceRow) -> tuple[str, list[Turn], str]:
    """The column's name, the prompt and the response."""
    for name in ("messages", "conversations"):
        if name in row.fields:
            return name, *split_conversation(row.turns(name), name)
    if "query" not in row.fields:
        raise row.unknown_columns("a row has messages, and for a pair rejected_response")
    return "query", row.turns("query"), row.response("response")


def _rejected(row: SourceRow, prompt: list[Turn]) -> str | None:
    value = row.fields.pop("rejected_response", None)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            why = f"holds {len(value)} responses"
            raise RowError("rejected_response", why, "a pair has one rejected response: give each its own row")
        value = value[0]
    if has_content(value):
        return response_text(value, "rejected_response", row.notes, prompt)
    if "rejected_messages" in row.fields:
        return row.response("rejected_messages", prompt)
    return None


def from_row(row: Fields, notes: Notes) -> Fields:
    """A vidalign row as messages that end with the response, and for a pair rejected_response. Raises `RowError`."""
    asked = conversation(row, notes)
    said = [
        *([("system", asked.system)] if asked.system else []),
        *asked.turns,
        ("assistant", row.get("chosen") or row["answer"]),
    ]
    theirs: Fields = {"messages": [{"role": role, "content": text} for role, text in said]}
    if "chosen" in row:
        theirs["rejected_response"] = row["rejected"]
    return theirs | asked.media_columns() | more_columns(row, notes)
