"""What a policy's prompts may hold and end with, so that an endpoint's prompts are those of training.

request ── a special token in a text? ─► 400
        ── bos and end of turn as `vidalign.model.turns` has them ─► engine
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jinja2
import jinja2.meta

from vidalign.special_tokens import FIX, KNOWN_ONLY, SpecialTokens, why

RENDERED = ("messages", "tools", "documents", "chat_template_kwargs")  # what a chat template can write into a prompt
MEDIA = frozenset({"video_url", "image_url"})
OF_MESSAGES = ("tool_calls",)  # what a template reads of a message, if it has that in mind
OWN_VARIABLES = frozenset(  # of the call that renders a template
    {"messages", "conversation", "tools", "documents", "chat_template", "tokenize", "return_dict", "add_generation_prompt"}
    | {
        "continue_final_message",
        "reasoning_effort",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "tokenizer_kwargs",
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatRules:
    """The rules of one policy: `special` may be in no text, `stop` is the id that ends a reply, `adds_bos` says whether the tokenizer
    has to put bos before what the template writes, and `reads` what the template reads (None: it is not known).
    """

    special: SpecialTokens = KNOWN_ONLY
    stop: int | None = None
    adds_bos: bool = False
    reads: frozenset[str] | None = None

    @classmethod
    def of(cls, path: str, *, trust_remote_code: bool = False) -> ChatRules:
        """The rules for a model folder. Raises `ModelError` where its processor or chat template cannot be used."""
        from vidalign.model.rendering import load_processor
        from vidalign.model.turns import turns_of

        processor = load_processor(path, trust_remote_code=trust_remote_code)
        turns = turns_of(processor)
        return cls(
            special=turns.special, stop=turns.end[-1], adds_bos=bool(turns.bos), reads=variables_of(processor.chat_template)
        )

    def refusal(self, body: dict[str, Any]) -> str | None:
        """The message that refuses a chat request, as its JSON; None for one that can be answered."""
        for name in RENDERED:
            for place, text in _texts(body.get(name), name):
                if found := self.special.found(text):
                    return f"{place}: {why(found)}; {FIX}"
        return self._not_read(body)

    def _not_read(self, body: dict[str, Any]) -> str | None:
        """What the template would not write, so that it would change nothing."""
        options = body.get("chat_template_kwargs") or {}
        for name in options:
            if name in OWN_VARIABLES:
                return f"chat_template_kwargs.{name} is the endpoint's own; leave it out"
        if self.reads is None:
            return None
        asked: dict[str, tuple[str, ...]] = {name: (name,) for name in ("tools", "documents") if body.get(name)}
        asked |= {f"chat_template_kwargs.{name}": (name,) for name in options}
        if body.get("reasoning_effort"):
            asked["reasoning_effort"] = ("reasoning_effort", "enable_thinking")
        for number, message in enumerate(body.get("messages") or []):
            if message.get("tool_calls"):
                asked[f"messages[{number}].tool_calls"] = ("tool_calls",)
        for place, names in asked.items():
            if not self.reads.intersection(names):
                return f"{place} is not taken: the chat template of this model does not read it, so it would be ignored; leave it out"
        return None

    def apply(self, body: dict[str, Any]) -> None:
        """Set what vLLM does by default in another way than training does."""
        body["add_special_tokens"] = self.adds_bos
        if self.stop is not None and not body.get("ignore_eos"):  # who asks for that wants to go on past a turn's end
            body["stop_token_ids"] = list(dict.fromkeys([*(body.get("stop_token_ids") or []), self.stop]))


def variables_of(template: Any) -> frozenset[str] | None:
    """What a chat template reads beside the texts of its messages; None where that cannot be told."""
    if not isinstance(template, str):
        return None
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        read = jinja2.meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateSyntaxError:  # of a statement that transformers adds
        return None
    return frozenset(read | {name for name in OF_MESSAGES if name in template})


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
