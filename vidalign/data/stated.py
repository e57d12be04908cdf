"""Which of its numbers a text states in answer to a question."""

from __future__ import annotations

import dataclasses
import re

from vidalign.data.number_words import foreign_number
from vidalign.data.numbers import UNITS, Number, find_numbers, prepared
from vidalign.data.words import content_words

_COUNTED = re.compile(r"\bhow many\s+[^\W\d]")
_UNIT = "|".join(sorted((unit for unit in UNITS if len(unit) > 2 and unit.isascii()), key=len, reverse=True))
_ASKED_UNIT = re.compile(rf"\bhow many ({_UNIT})\b|\bin ({_UNIT})\b")
_NAMED = re.compile(r"\b(?:step|frame|scene|figure|picture|option|chapter|part|room|level|round)\s+$")
_SOMETHING = re.compile(r"(?:there(?:'s| is)|i (?:can )?see|it's|it is)?\s*(?:only |just )?an? [^\W\d]+(?: in the \w+)?")
_CUE = re.compile(
    r"\b(?:answer|(?<!i )(?<!we )count|result|(?<!in )total|sum)\b(?:\s+(?:is|are|was|of|number|count|be|would))*\s*[:=]?\s*(?:is\s+)?"
    r"|\b(?:so|therefore|thus|hence|(?:that|which) makes)\b,?\s*(?:there (?:are|is)|it is|it's|i count|we have)?\s*(?:a total of )?"
    r"|\bi\.e\.,?\s*|\b(?:making|totall?ing|but (?:it is|it's)|actually)\b,?\s*|\?\s*no\b[,.:]?\s*|"
    r":\s+(?=\w+(?:\s[^\W\d]+)?[.!]?\s*$)|答案\s*(?:是|为|:)?\s*|=\s*|总共有?|一共有?|共有?"
)
_ENDS_STATEMENT = re.compile(
    r"(?:\s+[^\W\d]+)?\s+(?:\((?!.*\bor\b)|[—–]\s)|[^\w\s,]*\s*(?:\n|$|[.:!)]|,?\s*(?:since|because|as|for)\b)"
)
_BEFORE_LEADING = re.compile(r"(?:(?:i|we) (?:can )?(?:count|see)|there (?:are|is)|it is|it's)?")
_TOTAL_AFTER = re.compile(r"^(?:\s+[^\W\d]+){0,3}\s+(?:in total|in all|altogether|total)\b")


def stated_number(text: str, question: str = "") -> Number | None:
    """The one number that a text states in answer to a question; None where it states none. Its unit may be the question's."""
    number, asked = _stated(text, question), _ASKED_UNIT.search(prepared(question))
    if number is None or number.has_unit or asked is None:
        return number
    return dataclasses.replace(number, unit=asked[1] or asked[2])


def _stated(text: str, question: str) -> Number | None:
    """The one number that a text states in answer to a question; None where it states none, or several of equal weight.

    In this order: after a last "the answer is", the only one, a total, the one whose noun is in the question, one that stands alone
    in front. A number that is only bounded, ruled out or part of a range ("at least 3", "not 3", "2 or 3") is not stated.
    """
    text = prepared(text)
    every = [number for number in find_numbers(text) if not _is_of_other_things(text, number, prepared(question))]
    if not every and _COUNTED.search(prepared(question)) and (one := _SOMETHING.fullmatch(text.strip(" .!"))):
        return Number(1.0, "", *one.span())
    if not every and (foreign := foreign_number(text)) is not None:
        value, start, end = foreign
        return Number(float(value), "", start, end)
    strong = [number for number in every if not number.weak]
    usable = [number for number in every if not number.hedged]
    for cue in reversed(list(_CUE.finditer(text))):
        after = [number for number in usable if cue.end() <= number.start <= cue.end() + 8]
        if after:
            return after[0]
    # "one" and "no" are pronouns beside other numbers, unless the question's own noun follows.
    asked = set(content_words(question))
    named = {number: _overlap(text, number, asked) for number in usable}
    if any(not number.hedged for number in strong):
        usable = [number for number in usable if not number.weak or named[number]]
    elif strong:
        return None  # "not 3", "2 or 3": what is left are pronouns
    for group in (usable, _totals(text, usable), _on_first_line(text, usable), _best(named, usable), _leading(text, usable)):
        if group and all(number.equals(group[0]) for number in group):
            return group[0]
    return None


def _is_of_other_things(text: str, number: Number, question: str) -> bool:
    """Whether a number of a reply to "how many dots" is one of a place ("frame 3"), a measure ("3 seconds"), or of pairs of them."""
    if not _COUNTED.search(question):
        return False
    if _NAMED.search(text[: number.start]) or (number.unit == "pairs" and "pair" not in question):
        return True
    measure = UNITS.get(number.unit, ("",))[0]
    return bool(measure) and measure not in {UNITS[word][0] for word in re.findall(r"[^\W\d_]+", question) if word in UNITS}


def _overlap(text: str, number: Number, asked: set[str]) -> int:
    clause = re.split(r"[,.;!?\n]| and | but ", text[number.end :], maxsplit=1)[0]
    return len(asked & set(content_words(clause)[:3]))


def _best(named: dict[Number, int], usable: list[Number]) -> list[Number]:
    most = max((named[number] for number in usable), default=0)
    return [number for number in usable if most and named[number] == most]


def _totals(text: str, usable: list[Number]) -> list[Number]:
    return [number for number in usable if _TOTAL_AFTER.match(text[number.end :])]


def _on_first_line(text: str, usable: list[Number]) -> list[Number]:
    """The one number of a first line of up to four words, if other lines follow."""
    first, *others = text.strip().splitlines()
    if not others or len(first.split()) > 4:
        return []
    start = text.index(first)
    return [number for number in usable if start <= number.start < start + len(first)]


def _leading(text: str, usable: list[Number]) -> list[Number]:
    return [
        number
        for number in usable[:1]
        if _BEFORE_LEADING.fullmatch(text[: number.start].strip(" *(\"'")) and _ENDS_STATEMENT.match(text[number.end :])
    ]
