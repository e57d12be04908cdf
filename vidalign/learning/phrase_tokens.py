"""Which tokens of a response its key phrases cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vidalign.errors import ModelError
from vidalign.model.turns import turns_of


def phrase_ids(processor: Any, text: str, marks: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Phrase id of every token of `vidalign.model.rendering.response_ids(processor, text)`: 1, 2, … for the marks, 0 elsewhere.

    A token belongs to the first mark with which it shares a character, so a phrase that begins or ends inside a token takes the
    whole token. The end of turn belongs to no mark.

    Raises:
        ModelError: the model has no fast tokenizer, which alone says where its tokens are in the text.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not say where its tokens are in the text, but "
            "objectives on key phrases need that; convert it to a tokenizer.json"
        )
    turns = turns_of(processor)
    shown, moved = turns.reply(text)
    offsets = tokenizer(shown, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ids = [
        next((number for number, (first, last) in enumerate(marks, 1) if start < last + moved and first + moved < end), 0)
        for start, end in offsets
    ]
    return (*ids, *(0 for _ in turns.end))
