"""How large the texts and forms of a request may be, beyond which it would keep everybody else waiting before it is refused.

Texts are searched for special tokens and split into tokens where everybody's requests pass; a form is compiled to a grammar, at a
cost that grows faster than its size (here with xgrammar: 0.4 s for 20,000 words to choose from, minutes for 200,000).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydantic_core

from serving.replies import Refusal
from serving.schema import FORMS

MOST_CHARACTERS = 128  # of the longest token of a vocabulary
LEAST_TEXT = 2**16  # that a request may have whatever the context is
LARGEST_FORM = 2**15  # bytes
MEDIA = frozenset({"video_url", "image_url"})


def check_size(body: dict[str, Any], max_model_len: int) -> None:
    """Raises `Refusal` for more text than a context can have, or a form that is too large."""
    most = max(LEAST_TEXT, MOST_CHARACTERS * max_model_len)
    if (number := sum(_lengths(body))) > most:
        raise Refusal(
            400,
            f"the texts of this request have {number:,} characters, and one may have {most:,} where the context is {max_model_len} "
            "tokens; send less",
        )
    for name in FORMS:
        if name in body and (size := len(pydantic_core.to_json(body[name]))) > LARGEST_FORM:
            raise Refusal(
                400,
                f"{name} has {size:,} bytes, and what says the form of a reply may have {LARGEST_FORM:,}; make it smaller",
            )


def _lengths(value: Any) -> Iterator[int]:
    """Of every text in a request's JSON, without the media."""
    inside = [value]
    while inside:
        value = inside.pop()
        if isinstance(value, str):
            yield len(value)
        elif isinstance(value, dict):
            inside += [each for name, each in value.items() if name not in MEDIA]
            yield sum(map(len, value))
        elif isinstance(value, list):
            inside += value
