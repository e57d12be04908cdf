"""What a policy's prompts may hold and end with, so that an endpoint's prompts are those of training.

request ── a special token in a text? ─► 400
        ── bos and end of turn as `vidalign.model.turns` has them ─► engine
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from vidalign.special_tokens import FIX, KNOWN_ONLY, SpecialTokens, why

RENDERED = ("messages", "tools", "documents", "chat_template_kwargs")  # what a chat template can write into a prompt
MEDIA = frozenset({"video_url", "image_url"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRules:
    """The rules of one policy: `special` may be in no text, `stop` is the id that ends a reply, `adds_bos` says whether the tokenizer
    has to put bos before what the template writes.
    """

    special: SpecialTokens = KNOWN_ONLY
    stop: int | None = None
    adds_bos: bool = False

    @classmethod
    def of(cls, path: str, *, trust_remote_code: bool = False) -> ChatRules:
        """The rules for a model folder. Raises `ModelError` where its processor or chat template cannot be used."""
        from vidalign.model.rendering import load_processor
        from vidalign.model.turns import turns_of

        turns = turns_of(load_processor(path, trust_remote_code=trust_remote_code))
        return cls(special=turns.special, stop=turns.end[-1], adds_bos=bool(turns.bos))

    def refusal(self, body: dict[str, Any]) -> str | None:
        """The message that refuses a chat request, as its JSON; None for one that can be answered."""
        for name in RENDERED:
            for place, text in _texts(body.get(name), name):
                if found := self.special.found(text):
                    return f"{place}: {why(found)}; {FIX}"
        return None

    def apply(self, body: dict[str, Any]) -> None:
        """Set what vLLM does by default in another way than training does."""
        body["add_special_tokens"] = self.adds_bos
        if self.stop is not None and not body.get("ignore_eos"):  # who asks for that wants to go on past a turn's end
            body["stop_token_ids"] = list(dict.fromkeys([*(body.get("stop_token_ids") or []), self.stop]))


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every text in a request's JSON with its place, without the media."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for name, inside in value.items():
            if name not in MEDIA:
                yield from _texts(inside, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for number, inside in enumerate(value):
            yield from _texts(inside, f"{place}[{number}]")
