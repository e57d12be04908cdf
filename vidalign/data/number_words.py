"""Numbers as words of other languages than English and Chinese, by the spelling that ICU has for each."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping

from icu4py.messageformat import MessageFormat

_LANGUAGES = ("es", "fr", "de", "it", "pt", "nl", "pl", "ru", "uk", "tr", "ar", "hi", "sv", "id")
_LARGEST = 100
_ENGLISH = frozenset(("once", "elf", "due", "cent", "sex", "tier", "fire", "fem", "die", "dos", "nul", "null", "on", "tien"))
_ONE = ("un", "una", "une", "ein", "eine", "einen", "um", "uma")  # articles, where nothing else is a number
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_BOUNDED = re.compile(
    r"(?:más de|menos de|al menos|plus de|moins de|au moins|mehr als|weniger als|mindestens|höchstens|più di|meno di|almeno|mais de|"
    r"pelo menos|meer dan|minder dan|более|больше|менее|меньше|не менее)\s+$"
)


@functools.cache
def _values() -> Mapping[str, int]:
    """Every number up to `_LARGEST` that is one word; without words that are English ones or differ in value between languages."""
    found: dict[str, set[int]] = {word: {1} for word in _ONE}
    for language in _LANGUAGES:
        spell = MessageFormat("{n, spellout}", language)
        for value in range(_LARGEST + 1):
            word = unicodedata.normalize("NFKC", spell.format({"n": value})).lower().replace("\u00ad", "")
            found.setdefault(word, set()).add(value)
    return {
        word: min(values)
        for word, values in found.items()
        if len(values) == 1 and word not in _ENGLISH and _WORD.fullmatch(word)
    }


def foreign_number(text: str) -> tuple[int, int, int] | None:
    """(value, start, end) of the one number that a text in lower case holds as a word; None where it holds none, or several."""
    values = _values()
    found = [
        (values[match[0]], *match.span())
        for match in _WORD.finditer(text)
        if match[0] in values and not _BOUNDED.search(text[: match.start()])
    ]
    certain = [number for number in found if text[number[1] : number[2]] not in _ONE] or found
    return certain[0] if len({value for value, _, _ in certain}) == 1 else None
