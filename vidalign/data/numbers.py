"""Numbers in a text: digits, words (English and Chinese), percent, thousands separators, and the unit after them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import unicodedata

from vidalign.data.number_words import foreign_number
from vidalign.data.words import SPACELESS_RANGES, content_words, vocabulary

_ONES = {
    word: value
    for value, word in enumerate(
        vocabulary(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
            "eighteen nineteen"
        )
    )
}
_TENS = {
    word: 10 * value for value, word in enumerate(vocabulary("twenty thirty forty fifty sixty seventy eighty ninety"), 2)
}
_SCALES = {"hundred": 100, "thousand": 1000, "k": 1000, "million": 10**6, "billion": 10**9, "dozen": 12}
_LARGEST = 1e15  # beyond it, words of numbers side by side are no number
_TIMES = {"once": 1, "twice": 2, "thrice": 3}
_WEAK = {
    "none": 0,
    "no": 0,
    "nobody": 0,
    "nothing": 0,
    "single": 1,
    "couple": 2,
    "pair": 2,
}  # only where nothing else is a number
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4}
_UNITS = {
    **dict.fromkeys(vocabulary("s sec secs second seconds 秒"), ("time", 1.0)),
    **dict.fromkeys(vocabulary("ms millisecond milliseconds"), ("time", 1e-3)),
    **dict.fromkeys(vocabulary("min mins minute minutes 分钟"), ("time", 60.0)),
    **dict.fromkeys(vocabulary("h hr hrs hour hours 小时"), ("time", 3600.0)),
    **dict.fromkeys(vocabulary("mm millimetre millimetres millimeter millimeters"), ("length", 1e-3)),
    **dict.fromkeys(vocabulary("cm centimetre centimetres centimeter centimeters 厘米"), ("length", 1e-2)),
    **dict.fromkeys(vocabulary("m metre metres meter meters 米"), ("length", 1.0)),
    **dict.fromkeys(vocabulary("km kilometre kilometres kilometer kilometers 公里"), ("length", 1e3)),
    **dict.fromkeys(vocabulary("g gram grams 克"), ("weight", 1.0)),
    **dict.fromkeys(vocabulary("kg kilogram kilograms kilo kilos 公斤"), ("weight", 1e3)),
    **dict.fromkeys(vocabulary("% percent 百分之"), ("percent", 1.0)),
}

_DIGITS = (
    rf"(?<![^\W{SPACELESS_RANGES}가-힣])(?<![.,:/])[-+−]?"
    r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:'\d{3})+|\d{1,30})(?:\.\d{1,30})?(?:e[-+]?\d{1,2})?"
    r"(?:\s*[/⁄]\s*\d{1,9})?"
)
_NOT_AFTER = r"(?!\d|[.:,/]\d|(?:st|nd|rd|th|d)\b)"
_NAMES = "|".join([*_ONES, *_TENS, *_SCALES])
_SPELLED = (
    r"\b(?:an?\s+(?=(?:hundred|thousand|million|billion|dozen)\b)|half an?\s+(?=dozen\b))?"
    rf"(?:{_NAMES})(?:(?:[\s-]+|\s+and\s+)(?:{_NAMES}))*\b"
)
_NUMBER = re.compile(
    rf"(?P<digits>{_DIGITS}){_NOT_AFTER}(?:\s*(?P<scale>(?:hundred|thousand|million|billion|dozen|k)\b))?"
    rf"|(?P<spelled>{_SPELLED})|\b(?P<times>{'|'.join(_TIMES)})\b|\b(?P<weak>{'|'.join(_WEAK)})\b"
    rf"|(?P<chinese>[{''.join(_CHINESE)}{''.join(_CHINESE_SCALES)}]+)"
)
_AFTER = re.compile(r"\s*(?P<half>and a half\b)?\s*-?\s*(?P<unit>%|[^\W\d_]+)?")
_HEDGED = re.compile(
    r"(?:\b(?:more than|over|less than|under|fewer than|at least|at most|up to|above|below|between|not|never|rather than|"
    r"instead of|or)|n't|超过|至少|至多|不到|不是)\s*(?:(?:just|only|really|about|exactly|a total of|be|see|have) )?$"
)
_RANGE = re.compile(r"\s*(?:[-–—~～]|\bto\b|\bor\b|或|到)\s*")
_CUE = re.compile(
    r"\b(?:answer|count|result|total|sum)\b(?:\s+(?:is|are|was|of|number|count|be|would))*\s*[:=]?\s*(?:is\s+)?"
    r"|答案\s*(?:是|为|:)?\s*|=\s*|总共有?|一共有?|共有?"
)
_BOUNDED_AFTER = re.compile(r"(?:\s+[^\W\d]+)?\s+(?:at (?:most|least|minimum)|or (?:more|less|fewer))\b|以上|以下")
_ENDS_STATEMENT = re.compile(r"[^\w\s,]*\s*(?:\n|$|[.:!)]|,?\s*(?:since|because|as|for)\b)")
_TOTAL_AFTER = re.compile(r"^(?:\s+[^\W\d]+){0,3}\s+(?:in total|in all|altogether|total)\b")


@dataclasses.dataclass(frozen=True)
class Number:
    """A number in a text at characters [start, end). `weak`: a word that is a number only where nothing else is one."""

    value: float
    unit: str
    start: int
    end: int
    weak: bool = False
    hedged: bool = False

    def equals(self, other: Number) -> bool:
        """Whether the two are one quantity: in units of one dimension they are converted; a missing unit fits any."""
        mine, theirs = _UNITS.get(self.unit), _UNITS.get(other.unit)
        if mine and theirs:
            return mine[0] == theirs[0] and math.isclose(self.value * mine[1], other.value * theirs[1], rel_tol=1e-9)
        scale = 100 if "percent" in {unit[0] for unit in (mine, theirs) if unit} else 1  # 50 % is 0.5, and is 50
        small, large = sorted((abs(self.value), abs(other.value)))
        return math.isclose(self.value, other.value, rel_tol=1e-9) or (
            scale > 1 and math.isclose(small * scale, large, rel_tol=1e-9)
        )

    @property
    def has_unit(self) -> bool:
        return self.unit in _UNITS


def prepared(text: str) -> str:
    """A text as numbers are looked for in it: NFKC, lower case, no spaces as thousands separators."""
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    return unicodedata.normalize("NFKC", text).lower().replace("−", "-").replace("’", "'")


def find_numbers(text: str) -> list[Number]:
    """The numbers of a `prepared` text, in order. Ordinals, times of the day and versions are none."""
    found: list[Number] = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is None:
            continue
        after = _AFTER.match(text, match.end())
        assert after is not None, "everything in it is optional"
        unit = after["unit"] or ""
        if match["chinese"] and not unit and text[match.end() : match.end() + 1].isalpha():
            unit = text[match.end()]
        before = text[: match.start()]
        found.append(
            Number(
                value + 0.5 * bool(after["half"]),
                _first_unit(unit),
                match.start(),
                match.end(),
                weak=bool(match["weak"]) or match[0] in ("one", "一"),
                hedged=bool(_HEDGED.search(before) or _BOUNDED_AFTER.match(text, match.end())),
            )
        )
    return [
        dataclasses.replace(number, hedged=number.hedged or _in_range(text, found, index))
        for index, number in enumerate(found)
    ]


def _in_range(text: str, found: list[Number], index: int) -> bool:
    """Whether a number is one end of "2-3", "2 to 3" or "2 or 3"."""
    ends = found[max(0, index - 1) : index + 2]
    return any(_RANGE.fullmatch(text[first.end : second.start]) for first, second in itertools.pairwise(ends))


def _first_unit(text: str) -> str:
    for length in range(len(text), 0, -1):
        if text[:length] in _UNITS and (length == len(text) or not text.isascii()):
            return text[:length]
    return text


def _value(match: re.Match[str]) -> float | None:
    if match["digits"]:
        digits, _, divisor = re.sub(r"[\s,']", "", match["digits"]).replace("⁄", "/").partition("/")
        if divisor and not int(divisor):
            return None
        return float(digits) / (int(divisor) if divisor else 1) * _SCALES.get(match["scale"] or "", 1)
    if match["times"]:
        return _TIMES[match["times"]]
    if match["weak"]:
        return _WEAK[match["weak"]]
    if match["chinese"]:
        return _chinese(match["chinese"])
    return _spelled(match["spelled"])


def _spelled(text: str) -> float | None:
    total, part, last = 0.0, 0.0, 0
    half = 0.5 if text.startswith("half") else 1.0
    for word in re.findall(r"[a-z]+", text):
        if word in _ONES or word in _TENS:
            value = _ONES.get(word, _TENS.get(word, 0))
            if last and not (last >= 20 and last % 10 == 0 and value < last):
                return None  # "one two": two numbers side by side
            part, last = part + value, value
        elif word in ("hundred", "dozen"):
            part, last = max(part, 1) * _SCALES[word], 100
        elif word in _SCALES:
            total, part, last = total + max(part, 1) * _SCALES[word], 0.0, 100
    return (total + part) * half if total + part < _LARGEST else None


def _chinese(text: str) -> float | None:
    if len(text) > 1 and not any(character in _CHINESE_SCALES for character in text):
        return float("".join(str(_CHINESE[character]) for character in text)) if len(text) <= 15 else None
    total, part, digit = 0, 0, 0
    for character in text:
        if character in _CHINESE:
            digit = _CHINESE[character]
            continue
        scale = _CHINESE_SCALES[character]
        if scale == 10**4:
            total, part, digit = total + (part + digit) * scale, 0, 0
        else:
            part, digit = part + max(digit, 1) * scale, 0
    return float(total + part + digit) if total < _LARGEST else None


def stated_number(text: str, question: str = "") -> Number | None:
    """The one number that a text states in answer to a question; None where it states none, or several of equal weight.

    In this order: after a last "the answer is", the only one, a total, the one whose noun is in the question, one that stands alone
    in front. A number that is only bounded, ruled out or part of a range ("at least 3", "not 3", "2 or 3") is not stated.
    """
    text = prepared(text)
    every = find_numbers(text)
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
    for group in (usable, _totals(text, usable), _best(named, usable), _leading(text, usable)):
        if group and all(number.equals(group[0]) for number in group):
            return group[0]
    return None


def _overlap(text: str, number: Number, asked: set[str]) -> int:
    clause = re.split(r"[,.;!?\n]| and | but ", text[number.end :], maxsplit=1)[0]
    return len(asked & set(content_words(clause)[:3]))


def _best(named: dict[Number, int], usable: list[Number]) -> list[Number]:
    most = max((named[number] for number in usable), default=0)
    return [number for number in usable if most and named[number] == most]


def _totals(text: str, usable: list[Number]) -> list[Number]:
    return [number for number in usable if _TOTAL_AFTER.match(text[number.end :])]


def _leading(text: str, usable: list[Number]) -> list[Number]:
    return [
        number
        for number in usable[:1]
        if not text[: number.start].strip(" *(\"'") and _ENDS_STATEMENT.match(text[number.end :])
    ]
