"""ms-swift (https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html).

    messages, of which the last is the response (the chosen one, in a pair)
    rejected_response, a text or messages; or rejected_messages, a conversation that repeats the prompt
    query and response are the older names of a question and its response

Videos stand in the column `videos`, and a literal tag <video> in the text says where each belongs.
"""

from __future__ import annotations

from vidalign.data.formats.chat import (
    ONE_QUESTION,
    Fields,
    Notes,
    Turn,
    has_content,
    make_row,
    question,
    refuse_worse_only,
    reply,
    split_conversation,
    take_videos,
    turns_of,
)
from vidalign.errors import RowError


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One row of ours; takes out of `fields` what it uses. Raises `RowError`."""
    videos = take_videos(fields, notes)
    name, prompt, answer = _conversation(fields, notes)
    if has_content(fields.get("system")):
        prompt = [Turn("system", str(fields.pop("system"))), *prompt]
    asked = question(prompt, name, notes)
    rejected = _rejected(fields, prompt, notes)
    if rejected is None:
        refuse_worse_only(fields, "label")
        return make_row(fields, asked, videos, notes, answer=answer)
    again = fields.pop("rejected_videos", videos)
    if again not in (videos, videos[0] if videos else ""):
        raise RowError(
            "rejected_videos", "are not the row's videos", "a pair has one video for both responses: remove the row"
        )
    return make_row(fields, asked, videos, notes, chosen=answer, rejected=rejected)


def _conversation(fields: Fields, notes: Notes) -> tuple[str, list[Turn], str]:
    """The field's name, the prompt and the response."""
    for name in ("messages", "conversations"):
        if name in fields:
            return name, *split_conversation(turns_of(fields.pop(name), name, "user", notes), name)
    if "query" not in fields:
        why = f"has the columns {', '.join(fields) or '(none)'}"
        raise RowError("row", why, "a row has messages, and for a pair rejected_response")
    if has_content(fields.get("history")):
        raise RowError("history", "holds earlier turns", ONE_QUESTION)
    return (
        "query",
        turns_of(fields.pop("query"), "query", "user", notes),
        reply(fields.pop("response", None), "response", notes),
    )


def _rejected(fields: Fields, prompt: list[Turn], notes: Notes) -> str | None:
    value = fields.pop("rejected_response", None)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            why = f"holds {len(value)} responses"
            raise RowError("rejected_response", why, "a pair has one: give each a row of its own")
        value = value[0]
    if has_content(value):
        return reply(value, "rejected_response", notes, prompt)
    if "rejected_messages" in fields:
        return reply(fields.pop("rejected_messages"), "rejected_messages", notes, prompt)
    return None
