"""Words of a reply that look like an option's label or text and are none, and words of an option that a reply says in its own way.

"B flat", "plan B" and "C++" hold a letter that is no label; "that's right: left" does not say right; "10 min" is 10 minutes.
"""

from __future__ import annotations

import dataclasses
import re

from vidalign.data.labels import CLOSE, OPEN, Options
from vidalign.data.quantities import UNITS

_JOIN = "qzq"  # makes one word of several, and is in no word
_SPEEDS = {"kmh", "kph", "mph", "mi"}
_NAMES: dict[tuple[str, float], str] = {}
for _unit, _kind in UNITS.items():
    _NAMES[_kind] = max(_NAMES.get(_kind, ""), _unit if _unit.isascii() else "", key=len)
_SHORT = [unit for unit in UNITS if unit.isascii() and unit.isalpha() and unit not in _SPEEDS]
_UNIT = re.compile(rf"(?<=\d)\s*({'|'.join(sorted(_SHORT, key=len, reverse=True))})(?![\w/])")
_AGREED = re.compile(r"\b(?:(?:that|this)(?:'s| is)|you(?:'re| are)|all|quite)\s+(right|correct|true)\s*[,:;.!]\s*(?=\w)")
_THE_ONE = re.compile(
    r"\b((?:the|an?|this|that)\s+(?!(?:first|second|third|fourth|fifth|sixth|last|next|other|same|only|right|correct|wrong|number|\d)"
    r"\b)[a-z]+(?:\s+[a-z]+)?)\s+ones?\b"
)
_EXPLAINS = r"\s*[:=]?\s+(?:(?:is|was|shows?|says|means|describes|would be)\s+)(?:(?:an?|the)\s+)?"
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def with_whole_names(text: str, listed: Options) -> tuple[str, Options]:
    """The text and the options, in which each option's text that holds a label's letter and is said is one word.

    "A" before another word is an article, and no letter of a name.
    """
    texts = list(listed.texts)
    for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
        option = texts[index]
        letters = re.findall(r"(?<![a-z0-9])(?:[b-z]|a(?!\s))(?![a-z0-9])", option)
        if len(option) < 2 or not set(letters) & set(listed.labels):
            continue
        said = re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, option.split())) + r"(?![\w+#])")
        if said.search(text):
            texts[index] = _JOIN.join(re.sub(r"[+#]", " plus", option).split())
            text = said.sub(texts[index], text)
    return text, dataclasses.replace(listed, texts=tuple(texts))


def without_asides(text: str, listed: Options) -> str:
    """The text without words of agreement, and without "one" for what an adjective belongs to."""
    said = {word for option in listed.texts for word in option.split()}
    text = _AGREED.sub(lambda match: "" if match[1] in said else match[0], text)
    return text if said & {"one", "ones", "1"} else _THE_ONE.sub(r"\1", text)


def without_explained(text: str, listed: Options) -> str:
    """The text without what it says about options by their labels: "A is red", of the option "A. red"."""
    for label, option in listed.pairs:
        text = re.sub(rf"(?<![\w']){OPEN}{label}{CLOSE}{_EXPLAINS}{re.escape(option)}(?!\w)", " ", text)
    return text


def is_weighed(text: str, listed: Options) -> bool:
    """Whether a text is a number for each option, and no more: {"A": 0.1, "B": 0.9}."""
    each = r"[\"']?([a-z])[\"']?\s*[:=]\s*\d+(?:\.\d+)?\s*%?"
    whole = re.fullmatch(rf"[{{\s]*{each}(?:[,;\s]+{each})+[}}\s.]*", text)
    return bool(whole) and set(re.findall(each, text)) == set(listed.labels)


def has_numbers(option: str, text: str) -> bool:
    """Whether the numbers of an option are whole numbers of a text: 2 is not in 0.2."""
    return _values(option) <= _values(text)


def _values(text: str) -> set[float]:
    return {float(number.replace(",", "") if number.count(".") < 2 else "nan") for number in _NUMBER.findall(text)}


def with_units(text: str) -> str:
    """The text with one name for each unit that stands after digits."""
    return _UNIT.sub(lambda match: f" {_NAMES[UNITS[match[1]]]}", text)


def of_clause(text: str, listed: Options) -> int | None:
    """The option that says a text after its yes or no: "he does not", of "No, he does not"."""
    rests = [re.sub(r"^(?:yes|no)\s*[,;:.–—-]?\s+", "", option) for option in listed.texts]
    return rests.index(text) if rests.count(text) == 1 and text not in ("yes", "no") else None


def says_another(text: str, listed: Options, index: int) -> bool:
    """Whether a text goes on with what another option says of the same subject: "he opens it and closes it", of "he closes it"."""
    own = listed.texts[index].split()
    for other in (option.split() for place, option in enumerate(listed.texts) if place != index):
        shared = next((at for at, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
        rest = r"\s+".join(map(re.escape, other[shared:]))
        after = rf"\b(?:and|then|but)\s+(?:(?:also|then|later|afterwards|finally)\s+)?{rest}(?!\w)"
        if shared and len(other) > shared + 1 and re.search(after, text) and not re.search(after, listed.texts[index]):
            return True
    return False
