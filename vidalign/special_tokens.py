"""Texts that a tokenizer reads as special tokens: in a row, a prompt or a message they would end a turn or forge another one.

Tokenizers look for the text of their special tokens everywhere, also in what a user wrote. So no text that goes into a chat template
may hold one. Without a model, those of known families count (`KNOWN`); with one, its own too (`SpecialTokens`).

<video>, <image> and <audio> are not among the known ones: in many data formats they stand for a row's media, and the rules of a
row (`vidalign.data.rows`) say where they may be.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Iterable

_FAMILIES = (
    # ChatML, Qwen, Llama 3, Phi, GLM, ERNIE, PaddleOCR-VL, DeepSeek: any name in such brackets. GLM's box around an answer is text.
    r"<\|(?!(?:begin|end)_of_box\|>)[^\s|<>]{1,40}\|>",
    r"<｜[^\s｜<>]{1,40}｜>",
    r"</?s>|<(?:bos|eos|pad|unk)>",  # Llama 2, Vicuna, LLaVA-NeXT-Video, Gemma
    r"\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\]",  # Llama 2, Mistral
    r"\[[gs]MASK\]|<(?:sop|eop)>",  # GLM
    r"<(?:start|end)_of_(?:turn|image|utterance)>|<image_soft_token>",  # Gemma 3, Idefics
    r"<\|?(?:turn|channel|image|audio)\|>|<\|(?:turn|channel)>",  # Gemma 4
    r"<fake_token_around_image>|<global-img>",  # SmolVLM
    r"<IMG_CONTEXT>|</?img>",  # InternVL
    r"</image>|</?slice>|</?image_id>|</?unit>",  # MiniCPM-V
)
KNOWN = re.compile("|".join(_FAMILIES))
MEDIA = re.compile("<video>|<image>|<audio>")
FIX = "write the plain text, without a chat template around it: the model's own template adds its tokens"


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What may not be in a text for one model: `texts` are its own special tokens and headings of turns, in addition to `KNOWN`."""

    texts: tuple[str, ...] = ()

    def found(self, text: str) -> list[str]:
        """The special tokens in a text, each once, in order; also those that Unicode's NFKC, as some tokenizers apply it, makes."""
        pattern = _pattern(self.texts)
        for each in (text, unicodedata.normalize("NFKC", text)):
            if tokens := list(dict.fromkeys(match[0] for match in pattern.finditer(each))):
                return tokens
        return []

    def without(self, text: str) -> str:
        """The text without special tokens, also without those that come about when others are taken out."""
        pattern = _pattern(self.texts)
        while self.found(text):
            shorter = pattern.sub("", text)
            text = unicodedata.normalize("NFKC", text) if shorter == text else shorter
        return text


KNOWN_ONLY = SpecialTokens()


def why(found: Iterable[str]) -> str:
    """What is wrong with a text that holds these tokens."""
    found = list(found)
    return f"holds the special token{'s' if len(found) > 1 else ''} {', '.join(found)}"


@functools.lru_cache(maxsize=16)
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Longer texts first. A heading, such as "USER:", counts only where it does not continue a word."""
    rare = sorted(
        (text for text in texts if not KNOWN.fullmatch(text)), key=len, reverse=True
    )  # some have a thousand known ones
    own = [(r"(?<!\w)" if text[0].isalnum() else "") + re.escape(text) for text in rare]
    return re.compile("|".join([*own, KNOWN.pattern]))
