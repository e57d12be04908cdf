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
_KOREAN = {  # before what is counted
    word: value
    for value, words in enumerate(("하나 한", "둘 두", "셋 세", "넷 네", "다섯", "여섯", "일곱", "여덟", "아홉", "열"), 1)
    for word in words.split()
}
_KOREAN_COUNT = re.compile(
    rf"(?<!\w)({'|'.join(_KOREAN)})(?:\s*(?=개|명|마리|번|대|사람|장|권|잔|분|살)|"
    r"(?<=하나|다섯|여섯|일곱|여덟|아홉)(?!\w)|(?<=[둘셋넷])(?!\w))"
)
_PARTS = {"half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
# "three quarters"; "a third" only where nothing is called the third one
FRACTION = (
    r"\b(?:one|two|three|four|five|six|seven|nine|\d{1,2})[\s-]+"
    r"(?:hal(?:f|ves)|thirds?|quarters?|fourths?|fifths?|sixths?|eighths?|tenths?)\b"
    r"(?!\s+(?:past|to)\b)|\ban?\s+(?:quarter\b(?!\s+(?:past|to)\b)|(?:third|fourth|fifth|sixth|eighth|tenth)\b(?=\s+of\b|\W*$))|"
    r"(?<!\band )\b(?:one|an?)\s+half\b(?!\s+(?:past|an?|dozen)\b)"
)
_PARTS_OF = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "nine": 9}
# What says that there are none, in a text without other numbers
ZERO = (
    r"\bno[ -]one\b|\bnot (?:a single|one|any)\b|n't (?:(?:see|have|contain|show|notice) )?(?:a single|any)(?:one|body|thing)?\b|"
    r"\bnil\b|\bempty\b|\b(?:ningun[oa]s?|ningún|aucune?|keine?[rs]?|nessun[oa]?|nenhuma?|geen|ни одного)\b|"
    r"一[^\W\d][也都]?(?:没有|沒有|不)|(?:没有|沒有|没人|沒人|无人|ゼロ)"
)
_WORD = re.compile(r"(?:[^\W\d_]|[\u0900-\u0d7f])+(?:[\s-](?:[^\W\d_]|[\u0900-\u0d7f])+){0,2}")  # of up to three parts
_BOUNDED = re.compile(
    r"(?:más de|menos de|al menos|plus de|moins de|au moins|mehr als|weniger als|mindestens|höchstens|più di|meno di|almeno|mais de|"
    r"pelo menos|meer dan|minder dan|более|больше|менее|меньше|не менее|\bno(?: son)?|\bnicht|\bkeine?|\bpas|\bnon|\bnão|\bне)\s+$"
)


@functools.cache
def _values() -> Mapping[str, int]:
    """Every number up to `_LARGEST` that is one word; without words that are English ones or differ in value between languages."""
    found: dict[str, set[int]] = {word: {1} for word in _ONE}
    for language in _LANGUAGES:
        spell = MessageFormat("{n, spellout}", language)
        for value in range(_LARGEST + 1):
            word = unicodedata.normalize("NFKC", spell.format({"n": value})).lower().replace("\u00ad", "")
            for written in {word, word.replace("-", " ")}:
                found.setdefault(written, set()).add(value)
    return {
        word: min(values)
        for word, values in found.items()
        if len(values) == 1 and word not in _ENGLISH and _WORD.fullmatch(word)
    }


@functools.cache
def _spelled() -> re.Pattern[str]:
    """Any of those words as a whole, the longest first: "vingt et un" is not 20."""
    names = "|".join(re.escape(word) for word in sorted(_values(), key=len, reverse=True))
    return re.compile(rf"(?<![\w\u0900-\u0d7f-])(?:{names})(?![\w\u0900-\u0d7f]|-\w)")


def fraction(text: str) -> float:
    """The value of what `FRACTION` matches."""
    first, part = re.split(r"[\s-]+", text, maxsplit=1)
    return (_PARTS_OF[first] if first in _PARTS_OF else int(first)) / _PARTS[part.removesuffix("s")]


def foreign_number(text: str) -> tuple[int, int, int] | None:
    """(value, start, end) of the one number that a text in lower case holds as a word; None where it holds none, or several."""
    found = [(_KOREAN[match[1]], *match.span(1)) for match in _KOREAN_COUNT.finditer(text)] + [
        (_values()[match[0]], *match.span())
        for match in _spelled().finditer(text)
        if not _BOUNDED.search(text[: match.start()])
    ]
    certain = [number for number in found if text[number[1] : number[2]] not in _ONE] or found
    return certain[0] if len({value for value, _, _ in certain}) == 1 else None
