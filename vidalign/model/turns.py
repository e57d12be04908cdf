"""How a model's chat template writes turns, found by rendering it once with markers in place of texts.

    prompt  = bos, unless the template writes it + everything up to where the reply begins
    reply   = what closes an opened reasoning block, where the text has none + text + end of turn

End of turn is what the template writes after a reply and before the next turn, up to the first special token: <|im_end|> in ChatML,
<end_of_turn> in Gemma, the next role's own token in GLM. It need not be `tokenizer.eos_token`. Training, reference, scoring, rollouts
and the endpoint all take it from here, and likewise bos: exactly one where the tokenizer adds any.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jinja2

from vidalign import prompts
from vidalign.errors import ModelError
from vidalign.special_tokens import SpecialTokens

QUESTION, REPLY, NEXT = "vqxone", "vqxtwo", "vqxthree"  # no template writes these itself
MEDIA_TOKENS = ("video_token", "image_token", "audio_token")
_OPENED = re.compile(r"(<think>|◁think▷)\s*$")
_HEADING = re.compile(r"[^\W\d_][^\n]*[:\]#>]")  # such as "USER:" or "### Human:"; no word alone, which any text may hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns:
    """What a chat template and its tokenizer add to texts.

    Attributes:
        bos: what the tokenizer puts before a text and the template does not, as text and ids; usually empty.
        adds: whether the tokenizer, left alone, puts special tokens around a text.
        end: ids that close a reply; generation stops at the last of them. eos: what the tokenizer itself calls the end.
        opened: the reasoning block that the generation prompt opens, such as "<think>\\n"; usually empty.
        special: what no text may hold.
        notes: what a user should know, in sentences.
    """

    bos: str
    adds: bool
    end: tuple[int, ...]
    eos: int | None
    opened: str
    special: SpecialTokens
    notes: tuple[str, ...]

    def key(self) -> dict[str, Any]:
        """For the keys of what is kept: nothing where a reply ends with eos and nothing is added, as was once taken for granted."""
        usual = self.end == (self.eos,) and not self.bos and not self.opened
        return {} if usual else {"turns": [list(self.end), self.bos, self.opened]}

    def reply(self, text: str) -> tuple[str, int]:
        """A reply as it stands after the generation prompt, and by how many characters that moved its text.

        Where the prompt has opened a reasoning block, a text without reasoning first closes it, and a text that opens it itself does
        so no second time.
        """
        if not self.opened:
            return text, 0
        tag = self.opened.strip()
        closing = tag.replace("<", "</", 1).replace("◁", "◁/", 1)
        if text.startswith(tag):
            shorter = text.removeprefix(self.opened) if text.startswith(self.opened) else text.removeprefix(tag)
            return shorter, len(shorter) - len(text)
        if closing in text:
            return text, 0
        empty = ("\n" if self.opened.endswith("\n") else "\n\n") + f"{closing}\n\n"
        return empty + text, len(empty)


@functools.lru_cache(maxsize=16)
def turns_of(processor: Any) -> Turns:
    """How a processor's chat template writes turns.

    Raises:
        ModelError: the template cannot be rendered, does not keep texts as they are, or has no place for a video; or neither it nor
            the tokenizer says how a reply ends.
    """
    tokenizer = processor.tokenizer
    asked = _render(processor, prompts.chat(QUESTION), generation=True)
    if asked is None:
        raise ModelError(
            f"the chat template of {_name(processor)} cannot be rendered for one question on a video; correct it"
        )
    _check_question(processor, asked)
    specials = _special_ids(tokenizer)
    tail, pieces = _after_reply(processor)
    notes = []
    end = _end(tokenizer, tail, specials) if tail is not None else ()
    if not end:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"neither the chat template of {_name(processor)} nor its tokenizer says how a reply ends; write the end of turn into "
                "the template, or set eos_token"
            )
        end = (tokenizer.eos_token_id,)
        notes.append(f"the chat template writes no end of turn, so a reply ends with the tokenizer's {tokenizer.eos_token}")
    elif end != (tokenizer.eos_token_id,):
        notes.append(
            f"a reply ends with {tokenizer.decode(end)!r}, as in the chat template, not with {tokenizer.eos_token!r}"
        )
    opened = match[0] if (match := _OPENED.search(asked)) else ""
    if opened:
        notes.append(f"the generation prompt opens {opened.strip()}: a response without reasoning first closes it")
    if _trims(processor):
        notes.append("the chat template takes white space off both ends of a question")
    if re.search(r"\bstrftime_now\b", str(processor.chat_template)):
        notes.append(
            "the chat template may write the date or the time, with which prompts of a rollout and of a later training differ"
        )
    before, after = _added(tokenizer)
    written = tokenizer(asked, add_special_tokens=False)["input_ids"][: len(before)]
    return Turns(
        bos="" if written == before else "".join(tokenizer.convert_ids_to_tokens(before)),
        adds=bool(before or after),
        end=end,
        eos=tokenizer.eos_token_id,
        opened=opened,
        special=SpecialTokens(_special_texts(processor) + _headings(tokenizer, pieces, specials)),
        notes=tuple(notes),
    )


def _name(processor: Any) -> str:
    return str(getattr(processor.tokenizer, "name_or_path", "") or type(processor).__name__)


def _render(processor: Any, messages: list[dict[str, Any]], *, generation: bool) -> str | None:
    """The conversation as text; None where the template refuses or cannot read it."""
    try:
        return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError):
        return None


def _check_question(processor: Any, asked: str) -> None:
    places = [token for name in MEDIA_TOKENS if isinstance(token := getattr(processor, name, None), str)]
    if QUESTION not in asked or "{'type'" in asked:
        raise ModelError(
            f"the chat template of {_name(processor)} does not keep the text of a question as it is; it must take a content of parts, "
            '[{"type": "video"}, {"type": "text", "text": …}], and write the text unchanged'
        )
    if places and not any(place in asked for place in places):
        raise ModelError(
            f"the chat template of {_name(processor)} has no place for a video: it writes no {' and no '.join(places)} for a part "
            '{"type": "video"}; correct it'
        )


def _after_reply(processor: Any) -> tuple[str | None, list[str]]:
    """What the template writes after a reply, up to the next question's text if it takes one; and all that it writes between texts.

    None and nothing where it takes no reply.
    """
    question = prompts.chat(QUESTION)[0]
    again = {"role": "user", "content": [{"type": "text", "text": NEXT}]}
    contents: list[Any] = [[{"type": "text", "text": REPLY}], REPLY]
    for after in ([again], []):
        for content in contents:
            messages = [question, {"role": "assistant", "content": content}, *after]
            whole = _render(processor, messages, generation=False)
            if whole is not None and whole.count(REPLY) == 1 and "{'type'" not in whole:
                before, rest = whole.split(REPLY)
                tail = rest.partition(NEXT)[0]
                return tail, [before.partition(QUESTION)[2], tail]
    return None, []


def _end(tokenizer: Any, tail: str, specials: frozenset[int]) -> tuple[int, ...]:
    """Ids of a reply's end: the first special token of what follows it, and any white space before that; else nothing."""
    alone = tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    ids = tokenizer(REPLY + tail, add_special_tokens=False)["input_ids"]
    ids = ids[len(alone) :] if ids[: len(alone)] == alone else tokenizer(tail, add_special_tokens=False)["input_ids"]
    first = next((index for index, token in enumerate(ids) if token in specials), None)
    if first is None or tokenizer.decode(ids[:first]).strip():
        return ()
    return tuple(ids[: first + 1])


def _special_ids(tokenizer: Any) -> frozenset[int]:
    marked = {number for number, token in _added_tokens(tokenizer).items() if token.special}
    return frozenset(marked | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _added_tokens(tokenizer: Any) -> dict[int, Any]:
    return getattr(tokenizer, "added_tokens_decoder", {})  # not every backend has them


def _special_texts(processor: Any) -> tuple[str, ...]:
    """The model's special tokens as texts, without those that are ordinary words or signs (some tokenizers pad with "!")."""
    tokenizer = processor.tokenizer
    texts = [token.content for token in _added_tokens(tokenizer).values() if token.special]
    texts += [*tokenizer.all_special_tokens, *(getattr(processor, name, None) for name in MEDIA_TOKENS)]
    return tuple(
        sorted({text for text in texts if isinstance(text, str) and len(text) > 2 and not text.isalnum() and text.strip()})
    )


def _headings(tokenizer: Any, pieces: Sequence[str], specials: frozenset[int]) -> tuple[str, ...]:
    """What begins a turn in plain words, such as "ASSISTANT:", in templates without special tokens for it."""
    tokens = sorted(tokenizer.convert_ids_to_tokens(sorted(specials)), key=len, reverse=True)
    parts = re.split("|".join(map(re.escape, tokens)) or r"(?!)", "\n".join(pieces))
    lines = {line.strip() for part in parts for line in part.splitlines()}
    return tuple(sorted(line for line in lines if _HEADING.fullmatch(line)))


def _trims(processor: Any) -> bool:
    wide = _render(processor, prompts.chat(f"  {QUESTION}  "), generation=True)
    return wide is None or f"  {QUESTION}  " not in wide


def _added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before and after a text unless told not to."""
    plain = tokenizer(QUESTION, add_special_tokens=False)["input_ids"]
    whole = tokenizer(QUESTION)["input_ids"]
    start = next((at for at in range(len(whole) - len(plain) + 1) if whole[at : at + len(plain)] == plain), 0)
    return list(whole[:start]), list(whole[start + len(plain) :])
