"""Which of its numbers a text states in answer to a question."""

from __future__ import annotations

import dataclasses
import math
import re

from vidalign.data.durations import clock
from vidalign.data.number_words import foreign_number
from vidalign.data.numbers import find_numbers, prepared
from vidalign.data.opposites import CLASSES
from vidalign.data.quantities import UNITS, Number
from vidalign.data.words import content_words, stem, words

_COUNTED = re.compile(r"\bhow many\s+[^\W\d]")
_UNIT = "|".join(sorted((unit for unit in UNITS if len(unit) > 2 and unit.isascii()), key=len, reverse=True))
_ASKED_UNIT = re.compile(rf"\bhow many ({_UNIT})\b|\bin ({_UNIT})\b")
_NAMED = (
    r"\b(?:step|frame|scene|figure|picture|option|chapter|part|room|level|round|page|version{asked})\s*(?:number|no\.?|"
    r"#)?\s*$"
)
_OTHER = re.compile(r"\s*(?:°|degrees?\b|[$€£¥]|(?:dollar|euro|pound|cent)s?\b|o'clock|[ap]\.?m\b)")
_MONEY = re.compile(r"[$€£¥]\s*$")
_OPERATED = re.compile(r"\s+(?:[^\W\d]+\s+)?(more|less|fewer|plus|minus|squared|cubed|couples)\b")
_DENIED_AFTER = re.compile(
    r"\s*\??\s*no\b(?! more| doubt| less)|(?:\s+[^\W\d]+)?\s+(?:is|are|was|would be|seems?)\s+(?:clearly |definitely )?"
    r"(?:wrong|incorrect|false|impossible|not (?:right|correct))\b"
)
_SURENESS = re.compile(r"(?:^|(?<=[\n.;,(]))\s*(confidence|certainty|score|probability)\b[^\n]*")
_ADJECTIVE = re.compile(r"\s+([^\W\d]+)\s*(?:[.,;!]|$)")
_ROMAN = re.compile(r"(?=[ivxlc]{2,}$)(?:xc|xl|l?x{0,3})(?:ix|iv|v?i{0,3})")
_ROMAN_VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_SOMETHING = re.compile(r"(?:there(?:'s| is)|i (?:can )?see|it's|it is)?\s*(?:only |just )?an? [^\W\d]+(?: in the \w+)?")
_CUE = re.compile(
    r"\b(?:answer|(?<!i )(?<!we )count|result|(?<!in )total|sum)\b(?:\s+(?:is|are|was|of|number|count|be|"
    r"would))*\s*[:=]?\s*(?:is\s+)?"
    r"|\b(?:so|therefore|thus|hence|(?:that|which) makes)\b,?\s*(?:there (?:are|is)|it is|it's|i count|we have)?\s*(?:a total of )?"
    r"|\bin (?:total|all|sum),\s*|\b(?:wait|sorry|correction|oops|i mean|in fact|rather)\b[\s,.:;–—-]*(?:no\b[\s,.]*)?"
    r"|\bi\.e\.,?\s*|\b(?:making|totall?ing|but (?:it is|it's|there are|there is)|actually)\b,?\s*|\?\s*no\b[,.:]?\s*|"
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


def states_number(part: str, answer: str, question: str) -> bool | None:
    """Whether a reply states the number of an answer; None where what it counts or measures may be another thing.

    1:30 is right for 90 seconds, and "2 men and 2 women" is left open for 4.
    """
    number, stated = stated_number(answer, question), stated_number(part, question)
    if number is None:
        return False
    text = prepared(part)
    if stated is not None:
        return (
            None
            if stated.equals(number) and not _measures_alike(text, stated, number, f"{answer} {question}")
            else stated.equals(number)
        )
    dimension, size = UNITS.get(number.unit, ("", 1.0))
    seconds = clock(text) if dimension == "time" else None
    if seconds is not None:
        return math.isclose(seconds, number.value * size)
    found = [each for each in find_numbers(text) if not each.weak]
    together = len(found) > 1 and not any(each.hedged for each in found)
    return None if together and math.isclose(sum(each.value for each in found), number.value) else False


def _measures_alike(text: str, stated: Number, number: Number, row: str) -> bool:
    """Whether a number of a measure has no other word than a unit after it, and no "per hour" that the row lacks."""
    if not number.has_unit:
        return True
    rate = re.search(r"/|\bper\b|\bfast\b|\bspeed\b|\bfps\b", prepared(row))
    if rate is None and re.match(r"\s*[^\W\d]+\s*(?:/|per\b)", text[stated.end :]):
        return False
    return stated.has_unit or not stated.unit or stated.unit in words(row) or not stated.unit.isascii()


def _stated(text: str, question: str) -> Number | None:
    """The one number that a text states in answer to a question; None where it states none, or several of equal weight.

    In this order: after a last "the answer is", the only one, a total, the one whose noun is in the question, one that stands alone
    in front. A number that is only bounded, ruled out or part of a range ("at least 3", "not 3", "2 or 3") is not stated.
    """
    text = prepared(text)
    text = _SURENESS.sub(lambda match: match[0] if match[1] in question.lower() else "", text)
    lines = [line.split() for line in text.splitlines() if line.strip()]
    found = find_numbers(text)
    if _COUNTED.search(prepared(question)) and _ASKED_UNIT.search(prepared(question)) is None:
        found = [_in_millions(number) for number in found]
    every = [number for number in found if not _is_of_other_things(text, number, prepared(question))]
    if not every and _COUNTED.search(prepared(question)) and (one := _SOMETHING.fullmatch(text.strip(" .!"))):
        return Number(1.0, "", *one.span())
    if not every and (foreign := foreign_number(text)) is not None:
        value, start, end = foreign
        return Number(float(value), "", start, end)
    if not every and _ROMAN.fullmatch(bare := text.strip(" .!()")):
        values = [_ROMAN_VALUES[letter] for letter in bare]
        signs = [-1 if value < following else 1 for value, following in zip(values, [*values[1:], 0], strict=True)]
        return Number(float(sum(map(int.__mul__, signs, values))), "", 0, len(text))
    strong = [number for number in every if not number.weak]
    usable = [number for number in every if not number.hedged]
    for cue in reversed(list(_CUE.finditer(text))):
        after = [number for number in usable if cue.end() <= number.start <= cue.end() + 8]
        if after:
            return after[0]
    # "one" and "no" are pronouns beside other numbers, unless the question's own noun follows.
    asked = set(content_words(question)) - {"on", "in", "at", "of"}
    named = {number: _overlap(text, number, asked) for number in usable}
    if any(not number.hedged for number in strong):
        usable = [number for number in usable if not number.weak or named[number]]
    elif strong:
        return None  # "not 3", "2 or 3": what is left are pronouns
    counted_up = [number.value for number in every] == [*range(1, len(every) + 1)] and len(every) > 2
    if counted_up and not re.search(r"[^\W\d_]", re.sub(r"\b(?:and|then)\b", "", _without(text, every))):
        return every[-1]  # "one, two, three"
    if len(every) == len(lines) > 1 and all(len(line) == 1 for line in lines):
        usable = [] if len({number.value for number in usable}) > 1 else usable
    units = [number.unit for number in usable]
    if (
        len(set(units)) > 1
        and all(unit and unit not in UNITS for unit in units)
        and not any(named[number] for number in usable)
    ):
        return None  # "2 men, 2 women"
    for group in (
        usable,
        _totals(text, usable),
        _on_first_line(text, usable),
        _best(text, named, usable),
        _leading(text, usable),
    ):
        if group and all(number.equals(group[0]) for number in group):
            return group[0]
    return None


def _in_millions(number: Number) -> Number:
    """1M viewers."""
    return dataclasses.replace(number, value=number.value * 1e6, unit="") if number.unit == "m" else number


def _is_of_other_things(text: str, number: Number, question: str) -> bool:
    """Whether a number of a reply to "how many dots" is one of a place ("frame 3"), a measure ("3 seconds"), or of pairs of them."""
    if not _COUNTED.search(question):
        return False
    before, after = text[: number.start], text[number.end :]
    asked = "".join(f"|{noun}" for noun in re.findall(r"\bhow many (?:[^\W\d]+ )?([^\W\d]+?)s\b", question))
    asked += "".join(f"|{noun}" for noun in re.findall(r"\b(?:the|an?) ([^\W\d]+)", question))
    if re.search(_NAMED.format(asked=asked), before) or (number.unit == "pairs" and "pair" not in question):
        return True
    if re.search(r"(?<![?!]\s)(?<![?!])\bno\s+$", before):
        return True
    operated = _OPERATED.match(after)
    if _DENIED_AFTER.match(after) or (operated and operated[1] not in question):
        return True
    if _MONEY.search(before) or _OTHER.match(after):
        return re.search(r"dollar|euro|pound|cent|degree|[$€£°]", question) is None
    measure = UNITS.get(number.unit, ("",))[0]
    return bool(measure) and measure not in {UNITS[word][0] for word in re.findall(r"[^\W\d_]+", question) if word in UNITS}


def _without(text: str, numbers: list[Number]) -> str:
    for number in reversed(numbers):
        text = text[: number.start] + text[number.end :]
    return text


def _overlap(text: str, number: Number, asked: set[str]) -> int:
    clause = re.split(r"[,.;!?\n]| and | but ", text[number.end :], maxsplit=1)[0]
    return len(asked & set(content_words(clause)[:3]))


def _best(text: str, named: dict[Number, int], usable: list[Number]) -> list[Number]:
    most = max((named[number] for number in usable), default=0)
    if any(
        not named[number] and (word := _ADJECTIVE.match(text, number.end)) and stem(word[1]) in CLASSES[0]
        for number in usable
    ):
        return []  # "3 red dots and 2 blue"
    return [number for number in usable if most and named[number] == most]


def _totals(text: str, usable: list[Number]) -> list[Number]:
    return [number for number in usable if _TOTAL_AFTER.match(text[number.end :])]


def _on_first_line(text: str, usable: list[Number]) -> list[Number]:
    """The one number of a first line of up to four words, if other lines follow."""
    first, *others = text.strip().splitlines() or [""]
    if not others or len(first.split()) > 4:
        return []
    if any(find_numbers(line.strip(" .")) and len(line.split()) == 1 for line in others):
        return []
    start = text.index(first)
    return [number for number in usable if start <= number.start < start + len(first)]


def _leading(text: str, usable: list[Number]) -> list[Number]:
    return [
        number
        for number in usable[:1]
        if _BEFORE_LEADING.fullmatch(text[: number.start].strip(" *(\"'")) and _ENDS_STATEMENT.match(text[number.end :])
    ]
