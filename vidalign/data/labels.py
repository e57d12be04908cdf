"""The labels of a question's options, and what a label looks like in a text in lower case."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from vidalign import prompts
from vidalign.data.numbers import find_numbers, prepared
from vidalign.data.words import normalise

OPEN, CLOSE = r"[(\[{<\"'“‘«【〔「『]*", r"[)\]}>\"'”’»】〕」』]*"
# Words of several languages that join labels, and that no article or pronoun "a" or "i" has after it.
OR = r"or|nor|oder|ou|или|или же|أو|या|또는|または|か|noch|ni|ou bien"
_NO_NOUN = (
    rf"but|{OR}|and|und|et|y|e|и|because|since|as|is|was|with|over|vs|versus|beats|than|seems|looks|appears|matches|fits|to|into|it|"
    r"through|then|ist|est|es|remains|stays|wins"
)
WORD_AFTER = rf"\s+(?!(?:{_NO_NOUN})(?!\w))[^\W\d_]"
LETTER = rf"(?:[b-hj-z]|[ai](?!{WORD_AFTER}))"  # "a" and "i" before a word are words
ENDS = r"(?![a-z0-9]|'[a-z])"
CONFLICT = -1  # what names more than one option, or none that exists
MENTION = -2  # what may mean another thing: the letter of "vitamin B", "second"
_PLACES = {
    word: index
    for words in (
        "one two three four five six",
        "first second third fourth fifth sixth",
        "一 二 三 四 五 六",
        "i ii iii iv v vi",
    )
    for index, word in enumerate(words.split(), 1)
}
_NTH = r"(?:first|second|third|fourth|fifth|sixth|last|\d+(?:st|nd|rd|th))"
_ORDINAL = re.compile(rf"\b{_NTH}\b")
_PLACE = re.compile(
    r"(?:(?:the (?:correct |right )?answer is|it is|it's|i(?:'d)? (?:choose|pick|select|say)|选择?)?\s*)"
    rf"(?:(?:(?:option|choice|answer)\s*)?(?:option|choice|answer|number|no\.|#)\s*(?P<number>\d|one|two|three|four|five|six|ii|iii|iv|vi)|"
    rf"(?:the )?(?P<ordinal>{_NTH})(?P<noun> (?:option|choice|answer|one))?|第(?P<chinese>[\d一二三四五六])(?:个|"
    rf"個)?(?:选项|選項)?)"
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of a question: the labels by which they are called, lower case, and their texts, normalised."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def read(cls, options: Sequence[str]) -> Options:
        """Labels are those that the options carry, else the letters from a on; see `vidalign.prompts.labelled`."""
        listed = prompts.labelled(options)
        return cls(tuple(label.lower() for label, _ in listed), tuple(normalise(text) for _, text in listed))

    def index(self, label: str) -> int:
        return self.labels.index(label) if label in self.labels else CONFLICT

    @property
    def label(self) -> str:
        """Pattern of one label, in lower case."""
        return r"\d{1,2}" if self.labels and self.labels[0].isdigit() else LETTER

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(label, text) of the options that have a text beside their label."""
        return [(label, text) for label, text in zip(self.labels, self.texts, strict=True) if text and text != label]


def by_place(text: str, listed: Options) -> int | None:
    """What "the second option" or "option 2" says, where neither the labels nor the texts of the options are numbers."""
    match = _PLACE.fullmatch(text.strip(" .!"))
    counted = [*map(str, range(1, 1 + len(listed.labels)))] == [*listed.labels]
    named = listed.texts if counted else (*listed.labels, *listed.texts)
    if match is None or any(find_numbers(prepared(text)) or _ORDINAL.search(text) for text in named):
        return None
    if not match["noun"] and match["ordinal"]:
        return MENTION  # "second" may say when
    place = match["number"] or match["ordinal"] or match["chinese"]
    index = len(listed.labels) if place == "last" else _PLACES.get(place) or int(re.sub(r"\D", "", place))
    return index - 1 if 0 < index <= len(listed.labels) else CONFLICT
