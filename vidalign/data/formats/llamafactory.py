"""LLaMA-Factory: alpaca and sharegpt data (https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md).

    sharegpt   conversations (or messages) of {"from", "value"} or {"role", "content"}; for pairs, chosen and rejected
    alpaca     instruction, input; output, or for pairs chosen and rejected

Videos stand in the column `videos`, and a literal tag <video> in the text says where each belongs. The names are those of
their documents; columns that a dataset_info.json renames must have these names.
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
    name = next((name for name in ("conversations", "messages") if name in fields), "")
    if name:
        prompt = turns_of(fields.pop(name), name, "user", notes)
    else:
        prompt = [_instruction(fields)]
        name = "instruction"
    if has_content(fields.get("system")):
        prompt = [Turn("system", str(fields.pop("system"))), *prompt]
    if "chosen" in fields or "rejected" in fields:
        better, worse = (reply(fields.pop(side, None), side, notes, prompt) for side in ("chosen", "rejected"))
        return make_row(fields, question(prompt, name, notes), videos, notes, chosen=better, rejected=worse)
    refuse_worse_only(fields, "kto_tag")
    if name == "instruction":
        answer = reply(fields.pop("output", None), "output", notes)
    else:
        prompt, answer = split_conversation(prompt, name)
    return make_row(fields, question(prompt, name, notes), videos, notes, answer=answer)


def _instruction(fields: Fields) -> Turn:
    """The prompt of an alpaca row: instruction and input, a line break between them."""
    if "instruction" not in fields:
        why = f"has the columns {', '.join(fields) or '(none)'}"
        raise RowError("row", why, "a row has conversations (sharegpt) or instruction (alpaca)")
    if has_content(fields.get("history")):
        raise RowError("history", "holds earlier turns", ONE_QUESTION)
    parts = [fields.pop(name) for name in ("instruction", "input") if has_content(fields.get(name))]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("instruction", "and input must be texts", "write their texts")
    return Turn("user", "\n".join(parts))
