"""TRL: standard and conversational data sets (https://huggingface.co/docs/trl/dataset_formats).

    preference           prompt, chosen, rejected; or two conversations chosen and rejected that begin with the same prompt
    prompt-completion    prompt, completion
    language modelling   messages

Each is a text or messages. Videos stand in the messages' content or in a column: videos, video, images or image.
"""

from __future__ import annotations

import itertools
from typing import Any

from vidalign.data.formats.chat import (
    Fields,
    Notes,
    Turn,
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
    if "chosen" in fields or "rejected" in fields:
        return _pair(fields, videos, notes)
    refuse_worse_only(fields, "label")
    if "messages" in fields:
        prompt, answer = split_conversation(turns_of(fields.pop("messages"), "messages", "user", notes), "messages")
    elif "prompt" in fields and "completion" in fields:
        prompt = turns_of(fields.pop("prompt"), "prompt", "user", notes)
        answer = _stripped(reply(fields.pop("completion"), "completion", notes, prompt), notes)
    else:
        why = f"has the columns {', '.join(fields) or '(none)'}"
        raise RowError("row", why, "a row has prompt, chosen and rejected; or prompt and completion; or messages")
    return make_row(fields, question(prompt, "prompt", notes), videos, notes, answer=answer)


def _pair(fields: Fields, videos: list[str], notes: Notes) -> Fields:
    for side in ("chosen", "rejected"):
        if f"score_{side}" in fields and f"{side}_score" not in fields:  # as TRL's own data sets name it
            fields[f"{side}_score"] = fields.pop(f"score_{side}")
    chosen, rejected = fields.pop("chosen", None), fields.pop("rejected", None)
    given = fields.pop("prompt", None)
    prompt = _shared_prompt(chosen, rejected) if given is None else turns_of(given, "prompt", "user", notes)
    better = _stripped(reply(chosen, "chosen", notes, prompt), notes)
    worse = _stripped(reply(rejected, "rejected", notes, prompt), notes)
    return make_row(fields, question(prompt, "prompt", notes), videos, notes, chosen=better, rejected=worse)


def _shared_prompt(chosen: Any, rejected: Any) -> list[Turn]:
    """The turns before the first response, which both conversations begin with."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise RowError("prompt", "is missing", "give it: where the prompt ends in two texts is not known")
    both = zip(turns_of(chosen, "chosen", "", Notes()), turns_of(rejected, "rejected", "", Notes()), strict=False)
    return [
        turn for turn, other in itertools.takewhile(lambda pair: pair[0] == pair[1] and pair[0].role != "assistant", both)
    ]


def _stripped(text: str, notes: Notes) -> str:
    """In TRL's standard format a response continues its prompt and begins with a space; a reply of a chat does not."""
    if text != text.strip():
        notes["white space around a response, which was removed"] += 1
    return text.strip()
