"""LLaMA-Factory: alpaca and sharegpt data (https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md).

    sharegpt   conversations (or messages) of {"from", "value"} or {"role", "content"}; for pairs, chosen and rejected
    alpaca     instruction, input; output, or for pairs chosen and rejected

Videos are in the column `videos`, and a literal <video> tag in the text says where each belongs. The names are those of
LLaMA-Factory's documentation; columns that a dataset_info.json renames must be renamed to these.
"""

from __future__ import annotations

from vidalign.data.formats.chat import SourceRow
from vidalign.data.formats.exporting import conversation, more_columns
from vidalign.data.formats.fields import Fields, Notes, has_content, refuse_worse_only
from vidalign.data.formats.messages import Turn, split_conversation
from vidalign.errors import RowError

COLUMNS = {
    "messages": "conversations",
    "chosen": "chosen",
    "rejected": "rejected",
    "system": "system",
    "videos": "videos",
    "images": "images",
}


def to_row(fields: Fields, notes: Notes) -> Fields:
    """One vidalign row; what it uses is taken out of `fields`. Raises `RowError`."""
    row = SourceRow(fields, notes)
    name = next((name for name in ("conversations", "messages", "instruction") if name in fields), None)
    if name is None:
        raise row.unknown_columns("a row has conversations (sharegpt) or instruction (alpaca)")
    prompt = row.with_context([_instruction(fields)] if name == "instruction" else row.turns(name))
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
    parts = [fields.pop(name) for name in ("instruction", "input") if has_content(fields.get(name))]
    if not all(isinstance(part, str) for part in parts):
        raise RowError("instruction", "and input must be texts", "write their texts")
    return Turn.of("user", "\n".join(parts))


def from_row(row: Fields, notes: Notes) -> Fields:
    """A vidalign row as sharegpt data: conversations, and for a pair chosen and rejected. Raises `RowError`."""
    asked = conversation(row, notes)
    messages = [_message("human" if role == "user" else "gpt", text) for role, text in asked.turns]
    theirs: Fields = {"system": asked.system} if asked.system else {}
    if "chosen" in row:
        theirs |= {"conversations": messages, **{side: _message("gpt", row[side]) for side in ("chosen", "rejected")}}
    else:
        theirs |= {"conversations": [*messages, _message("gpt", row["answer"])]}
    return theirs | asked.media_columns() | more_columns(row, notes)


def _message(role: str, text: str) -> Fields:
    return {"from": role, "value": text}


def dataset_info(rows: list[Fields], name: str) -> Fields:
    """The entry of dataset_info.json that makes LLaMA-Factory read these rows from the file `name`."""
    present = {column for row in rows for column in row}
    columns = {ours: theirs for ours, theirs in COLUMNS.items() if theirs in present}
    ranking = {"ranking": True} if "chosen" in present else {}
    return {name.rpartition(".")[0]: {"file_name": name, "formatting": "sharegpt", **ranking, "columns": columns}}
