"""TRL: standard and conversational data sets (https://huggingface.co/docs/trl/dataset_formats).

    preference           prompt, chosen, rejected; or two conversations chosen and rejected that begin with the same prompt
    prompt-completion    prompt, completion
    language modelling   messages

Each is a text or messages. Videos are in the messages' content or in a column: videos, video, images or image.
"""

from __future__ import annotations

import itertools
from typing import Any

from vidalign.data.formats.chat import SourceRow
from vidalign.data.formats.exporting import conversation, more_columns, parts_of, response
from vidalign.data.formats.fields import Fields, Notes, refuse_worse_only
from vidalign.data.formats.messages import Turn, split_conversation, turns_of
from vidalign.data.rows import SIDES
from vidalign.errors import RowError


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    row = SourceRow(fields, notes)
    if row.is_pair:
        return _pair(row)
    refuse_worse_only(fields, "label")
    if "messages" in fields:
        prompt, answer = split_conversation(row.turns("messages"), "messages")
    elif "prompt" in fields and "completion" in fields:
        prompt = row.turns("prompt")
        answer = _response(row, "completion", prompt)
    else:
        raise row.unknown_columns("a row has prompt, chosen and rejected; or prompt and completion; or messages")
    return row.example(prompt, "prompt", answer)


def _pair(row: SourceRow) -> Fields:
    fields = row.fields
    for side in SIDES:
        if f"score_{side}" in fields and f"{side}_score" not in fields:  # the name in TRL's own data sets
            fields[f"{side}_score"] = fields.pop(f"score_{side}")
    prompt = row.turns("prompt") if "prompt" in fields else _shared_prompt(*(fields.get(side) for side in SIDES))
    chosen, rejected = (_response(row, side, prompt) for side in SIDES)
    return row.pair(prompt, "prompt", chosen, rejected)


def _shared_prompt(chosen: Any, rejected: Any) -> list[Turn]:
    """The turns before the first response, with which both conversations begin."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise RowError("prompt", "is missing", "add it: two texts do not show where the prompt ends")
    ours, theirs = turns_of(chosen, "chosen", "", Notes()), turns_of(rejected, "rejected", "", Notes())
    if ours[:-1] == theirs[:-1]:
        return ours[:-1]
    same = itertools.takewhile(
        lambda pair: pair[0] == pair[1] and pair[0].role != "assistant", zip(ours, theirs, strict=False)
    )
    return [turn for turn, _ in same]


def _response(row: SourceRow, name: str, prompt: list[Turn]) -> str:
    """A response. One that is a text continues its prompt and begins with a space, which in a chat it does not; spans of
    its phrases move with it."""
    is_text = isinstance(row.fields.get(name), str)
    text = row.response(name, prompt)
    if not is_text or text == text.strip():
        return text
    row.notes["white space around a response, which was removed"] += 1
    moved = len(text) - len(text.lstrip())
    if moved and isinstance(spans := row.fields.get(f"{name}_phrases"), list):
        row.fields[f"{name}_phrases"] = [
            [place - moved if isinstance(place, int) else place for place in span] if isinstance(span, list) else span
            for span in spans
        ]
    return text.strip()


def from_row(row: Fields, notes: Notes) -> Fields:
    """A vidalign row in TRL's conversational format: a preference, or a prompt with its completion. Raises `RowError`.

    As with TRL's images, the content has places and a column names the files: {"type": "video"} and `videos`. Every part of a
    message has the same two keys, or `datasets` would fill in others as null.
    """
    asked = conversation(row, notes)
    said = [*([("system", asked.system)] if asked.system else []), *asked.turns]
    theirs: Fields = {"prompt": [{"role": role, "content": parts_of(text)} for role, text in said]}
    if "chosen" in row:
        theirs |= {side: response(row[side]) for side in SIDES}
    else:
        theirs["completion"] = response(row["answer"])
    return theirs | asked.media_columns() | more_columns(row, notes)
