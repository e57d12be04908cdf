"""Numbers in a text: digits, words (English and Chinese), percent, fractions, thousands separators, and the unit after them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import unicodedata

from vidalign.data.durations import joined, spelled_out
from vidalign.data.number_words import FRACTION, ZERO, fraction
from vidalign.data.quantities import UNITS, Number
from vidalign.data.words import SPACELESS_RANGES, apart, vocabulary

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
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "k": 1000,
    "million": 10**6,
    "mio": 10**6,
    "billion": 10**9,
    "bn": 10**9,
    "dozen": 12,
}
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
    "duo": 2,
    "both": 2,
    "trio": 3,
    "half": 0.5,
}  # only where nothing else is a number
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九")} | {
    "〇": 0,
    "两": 2,
    "兩": 2,
    "俩": 2,
}
_CHINESE_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4}
_AFTER_DIGITS = {**_SCALES, **_CHINESE_SCALES, "dozens": 12, "亿": 10**8, "億": 10**8}

_DIGITS = (
    rf"(?:(?<![^\W{SPACELESS_RANGES}가-힣])|(?<=\bx)|(?<=\d[hm])|(?<=\dmin))(?<!第)(?<!\d[.,:/])(?<![.,/^])[-+−]?"
    r"(?:\d{1,3}(?:\.\d{3})+,\d{1,2}|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?: \d{3})+(?:[.,]\d{1,2})?(?!\d)|"  # as much of Europe writes them
    r"\d{1,30},\d{1,2}(?![\d,])|\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])|"
    r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:'\d{3})+|\d{1,30})(?:\.\d{1,30})?(?:e[-+]?\d{1,2})?|\.\d{1,30})"
    r"(?:\s*[/⁄]\s*\d{1,9}|\s\d{1,3}[/⁄]\d{1,3})?"
)
_NOT_AFTER = r"(?!\d|[.:,/^]\d|(?:st|nd|rd|th|-?d|[abcefijlnopqrtuvwyz])\b)"  # 3D, 3B
_NAMES = "|".join([*_ONES, *_TENS, *_SCALES])
_SPELLED = (
    r"(?<!\bnon-)\b(?:an?\s+(?=(?:hundred|thousand|million|billion|dozen)\b)|(?:a\s+)?half(?:[\s-]an?)?[\s-](?=dozen\b))?"
    rf"(?:{_NAMES})(?:(?:[\s-]+|\s+and\s+)(?:{_NAMES}|dozens))*\b"
)
_POWER = r"(?:\d{1,9}(?:\.\d{1,9})?\s?[x×*·]\s?)?(?<![\d.,])\d{1,4}(?:\^|\*\*)\{?\d{1,2}(?!\d)\}?"
_ANY_CHINESE = f"[{''.join(_CHINESE)}{''.join(_CHINESE_SCALES)}]"
_NUMBER = re.compile(
    rf"(?P<fraction>{FRACTION})|(?P<power>{_POWER})|(?P<digits>{_DIGITS}){_NOT_AFTER}"
    r"(?:\s*(?P<scale>(?:hundred|thousand|million|mio|billion|bn|dozens?|k)\b|[十百千万萬亿億]))?"
    rf"|(?P<zero>{ZERO})|(?P<spelled>{_SPELLED})|\b(?P<times>{'|'.join(_TIMES)})\b|"
    rf"\b(?P<weak>{'|'.join(_WEAK)})\b(?!\s+(?:idea|clue|doubt|answer|way|knows?|to|information)\b|\s+of (?:your|my|our)\b)"
    rf"|(?P<parts>{_ANY_CHINESE}+分之{_ANY_CHINESE}+)|(?P<chinese>(?!零下)(?<!第){_ANY_CHINESE}+)(?P<tenths>成)?"
)
_AFTER = re.compile(r"[^\S\n]*(?P<half>and a half\b)?[^\S\n]*-?[^\S\n]*(?P<unit>%|[^\W\d_]+)?")
_AFTER_PART = re.compile(r"\s*(?P<half>(?!))?(?:(?:of )?an? )?(?P<unit>%|[^\W\d_]+)?")  # half an hour
_HEDGED = re.compile(
    r"(?:\b(?:more than|over|less than|under|fewer than|(?:can't|cannot|could not|couldn't) be|at least|at most|up to|"
    r"above|below|between|not|never|rather than|"
    r"instead of|or|half(?: of)?|más de|menos de|plus de|moins de|mehr als|weniger als|nicht|pas|не|"
    r"более|больше|менее|меньше)|n't|"
    r"[≤≥≦≧]|超过|至少|至多|不到|不是|少于|多于|不足)\s*(?:(?:just|only|really|about|exactly|a total of|be|see|have) )?$"
)
_UNTIL = re.compile(r"\b(?:before|after|since|until)\s*$")  # of a year
_RANGE = re.compile(r"\s*(?:[-–—~～]|\bto\b|\bor\b|或|到)\s*")
_COMPARED = re.compile(r"(?:^|[\s:=(])[<>]$")  # with a space after it, ">" is a quotation's
_BELOW = re.compile(r"\s*(?:degrees?\s*|°\s?c?\s*)?below (?:zero|freezing)\b")
_BOUNDED_AFTER = re.compile(
    r"(?:\s+[^\W\d]+)?\s+(?:at (?:most|least|minimum)|or (?:more|less|fewer))\b|[a-z]?\+(?!\s*\d)|[^\W\d_]?(?:以上|以下)"
)
_MINUS = re.compile(r"(?:\b(?:minus|negative)\s+|零下|负|負)$")


@functools.lru_cache(maxsize=256)
def prepared(text: str) -> str:
    """A text as numbers are looked for in it: NFKC, lower case, no spaces as thousands separators."""
    text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text).replace("‒", "–")
    text = (
        unicodedata.normalize("NFKC", apart(text)).lower().replace("−", "-").replace("’", "'").replace("per cent", "percent")
    )
    return spelled_out(re.sub(r"(?:(?<=^)|(?<=[^\W\d]\s)|(?<=[:=(]))\s*[–—](?=\d)", "-", text))


def find_numbers(text: str) -> list[Number]:
    """The numbers of a `prepared` text, in order. Ordinals, times of the day and versions are none."""
    found: list[Number] = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is None or (found and match.start() < found[-1].end):
            continue
        after = (_AFTER_PART if match["fraction"] or match["weak"] == "half" else _AFTER).match(text, match.end())
        assert after is not None, "everything in it is optional"
        unit = after["unit"] or ""
        if _MINUS.search(text[: match.start()]) or _BELOW.match(text, match.end()):
            value = -value
        if match["chinese"] and not unit and text[match.end() : match.end() + 1].isalpha():
            unit = text[match.end()]
        before = text[: match.start()]
        found.append(
            Number(
                value + 0.5 * bool(after["half"]),
                _first_unit(unit),
                match.start(),
                after.end("half") if after["half"] else match.end(),
                weak=bool(match["weak"] or match["zero"]) or match[0] in ("one", "一"),
                hedged=bool(
                    _HEDGED.search(before)
                    or (_UNTIL.search(before) and value >= 1000)
                    or (_COMPARED.search(before) and not text.startswith(("<", ">"), match.end()))
                    or _BOUNDED_AFTER.match(text, match.end())
                ),
            )
        )
    found = joined(text, found)
    return [
        dataclasses.replace(number, hedged=number.hedged or _in_range(text, found, index))
        for index, number in enumerate(found)
    ]


def _in_range(text: str, found: list[Number], index: int) -> bool:
    """Whether a number is one end of "2-3", "2 km to 3 km", "2 or 3" or "between 2 and 3"."""
    for first, second in itertools.pairwise(found[max(0, index - 1) : index + 2]):
        between = text[first.end : second.start].strip()
        if first.has_unit:
            between = between.removeprefix(first.unit).strip()
        apart = (
            between in ("-", "–", "—") and first.value > second.value and text[first.end].isspace()
        )  # "3 — two red, one blue"
        if (_RANGE.fullmatch(between) and not apart) or (
            between == "and" and text[: first.start].rstrip().endswith("between")
        ):
            return True
    return False


def _first_unit(text: str) -> str:
    for length in range(len(text), 0, -1):
        if text[:length] in UNITS and (length == len(text) or not text.isascii()):
            return text[:length]
    return text


def _value(match: re.Match[str]) -> float | None:
    if match["fraction"]:
        return fraction(match["fraction"])
    if match["power"]:
        return _power(match["power"])
    if match["parts"]:
        whole, part = map(_chinese, match["parts"].split("分之"))
        return part / whole if whole and part is not None else None
    if match["zero"]:
        return 0
    if match["digits"]:
        value = _written(match["digits"])
        return None if value is None else value * _AFTER_DIGITS.get(match["scale"] or "", 1)
    if match["times"]:
        return _TIMES[match["times"]]
    if match["weak"]:
        return _WEAK[match["weak"]]
    if match["chinese"]:
        value = _chinese(match["chinese"])
        return None if value is None else value / (10 if match["tenths"] else 1)
    return _spelled(match["spelled"])


def _written(text: str) -> float | None:
    """The value of a number in digits: thousands in commas, apostrophes, spaces or points, decimals after a point or a comma."""
    whole, mixed, rest = text.partition(" ") if re.fullmatch(r"\S+\s\d+[/⁄]\d+", text) else ("", "", text)
    digits, _, divisor = re.sub(r"[\s']", "", rest).replace("⁄", "/").partition("/")
    if divisor and not int(divisor):
        return None
    if re.fullmatch(r"\D?\d{1,3}(?:\.\d{3})+,\d{1,2}|\D?\d{1,3}(?:\.\d{3}){2,}", digits):
        digits = digits.replace(".", "")
    digits = digits.replace(",", "." if re.fullmatch(r"\D?\d+,\d{1,2}", digits) else "")
    value = float(digits) / (int(divisor) if divisor else 1)
    if not mixed:
        return value
    before = _written(whole)
    return None if before is None else before + math.copysign(value, before)


def _power(text: str) -> float | None:
    """The value of "10^6" or "1.5 x 10^6"."""
    *factor, base, exponent = (float(number) for number in re.findall(r"[\d.]+", text))
    value = base**exponent * (factor[0] if factor else 1)
    return value if value < _LARGEST else None


def _spelled(text: str) -> float | None:
    total, part, last = 0.0, 0.0, 0
    half = 0.5 if "half" in text else 1.0
    for word in re.findall(r"[a-z]+", text):
        if word in _ONES or word in _TENS:
            value = _ONES.get(word, _TENS.get(word, 0))
            if last and not (last >= 20 and last % 10 == 0 and value < last):
                return None  # "one two": two numbers side by side
            part, last = part + value, value
        elif word in ("hundred", "dozen", "dozens"):
            part, last = max(part, 1) * _AFTER_DIGITS[word], 100
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
