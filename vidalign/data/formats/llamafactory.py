"""LLaMA-Factory: alpaca and sharegpt data (https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md).

    sharegpt   conversations (or messages) of {"from", "value"} or {"role", "content"}; for pairs, chosen and rejected
    alpaca     instruction, input; output, or for pairs chosen and rejected

Videos are in the column `videos`, and a literal <video> tag in the text says where each belongs. The names are those of
LLaMA-Factory's documentation; columns that a dataset_info.json renames must be renamed to these.
"""

from __future__ import annotations

from vidalign.data.formats.chat import SourceRow, Turn, split_conversation
from vidalign.data.formats.fields import Fields, Notes, has_content, refuse_history, refuse_worse_only
from vidalign.errors import RowError


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    row = SourceRow(fields, notes)
    name = next((name for name in ("conversations", "messages", "instruction") if name in fields), None)
    if name is None:
        raise row.unknown_columns("a row has conversations (sharegpt) or instruction (alpaca)")
    prompt = row.with_system([_instruction(fields)] if name == "instruction" else row.turns(name))
    if row.is_pair:
        return row.pair(prompt, name, *row.responses(prompt))
    refuse_worse_only(fields, "kto_tag")
    if name == "instruction":
        answer = row.response("output")
    else:
        prompt, answer = split_conversation(prompt, name)
    return row.example(prompt, name, answer)


def _instruction(fields: Fields) -> Turn:
    """The prompt of an alpaca row: instruction and input with a line break between them."""
    refuse_history(fields)
    parts = [fields.pop(name) for name in ("instruction", "input") if has_content(fields.get(name))]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("instruction", "and input must be texts", "write their texts")
    return Turn("user", "\n".join(parts))
