"""Times that are said in several numbers: "1 minute and 30 seconds", "1h30", "an hour and a half", 1:30."""

from __future__ import annotations

import dataclasses
import re

from vidalign.data.quantities import UNITS, Number

_SMALLER = {3600.0: ("minutes", 60.0), 60.0: ("seconds", 1.0), 86400.0: ("hours", 3600.0)}
_JOINT = r"\s*-?\s*{unit}\s*(?P<joint>,?\s*(?:and|und|et|y)\s|,|零)?\s*"
_AND_A_HALF = re.compile(
    r"\b(an?|one|two|three|four|five|\d{1,3}) (second|minute|hour|day|week|mile|dozen)(s?) and a half\b"
)
_MARKED = re.compile(r"(?<![\d'])(\d{1,3})'(\d{2})(?:\"|'')")
_CHINESE = re.compile(r"(?<=[\d一二两三四五六七八九十])分(?=[\d一二三四五六七八九十]+秒)")
_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,3}):(\d{2})(?![\d:.])(?P<hours>\s*(?:h|hrs?|hours?)\b)?")
_OF_DAY = re.compile(r"\b(?:at|until|till|from|to|since|by)\s*$")


def spelled_out(text: str) -> str:
    """A text with "a minute and a half" as "1 and a half minutes", and 1'30" as minutes and seconds."""
    text = _AND_A_HALF.sub(
        lambda match: f"{1 if match[1] in ('a', 'an') else match[1]} and a half {match[2]}{match[3]}", text
    )
    return _CHINESE.sub("分钟", _MARKED.sub(r"\1 min \2 s", text))


def joined(text: str, found: list[Number]) -> list[Number]:
    """The numbers of a text, those that are one time together as one number of seconds."""
    whole: list[Number] = []
    for number in found:
        last = whole[-1] if whole else None
        added = _added(text, last, number) if last is not None else None
        if last is None or added is None:
            whole.append(number)
        else:
            value = last.value * (60 if last.unit == "m" else UNITS[last.unit][1]) + added[0]
            whole[-1] = dataclasses.replace(last, value=value / added[1], unit=added[2], end=number.end)
    return whole


def _added(text: str, last: Number, number: Number) -> tuple[float, float, str] | None:
    """(seconds that a number adds to the one before it, the size and the name of its unit); None where it adds none."""
    dimension, size = UNITS.get(last.unit, ("", 0.0))
    own = UNITS.get(number.unit)
    if last.unit == "m" and own == ("time", 1.0):
        dimension, size = own[0], 60.0  # 1m30s
    if dimension != "time" or size not in _SMALLER or number.weak or number.value < 0:
        return None
    between = re.fullmatch(_JOINT.format(unit=re.escape(last.unit)), text[last.end : number.start])
    if between is None:
        return None
    if own is None and not number.unit and not between["joint"]:
        unit, scale = _SMALLER[size]  # 1h30
    elif own is not None and own[0] == "time" and own[1] < size:
        unit, scale = number.unit, own[1]
    else:
        return None
    return (number.value * scale, scale, unit) if number.value * scale < size else None


def clock(text: str) -> float | None:
    """The seconds of the one "1:30" or "0:01:30" of a text that holds no other number; None where there is none."""
    found = list(_CLOCK.finditer(text))
    if len(found) != 1 or re.search(r"\d", text[: found[0].start()] + text[found[0].end() :]):
        return None
    [match] = found
    first, second, third = int(match[1] or 0), int(match[2]), int(match[3])
    if third > 59 or _OF_DAY.search(text[: match.start()]):
        return None
    if match["hours"] and not match[1]:
        return 3600.0 * second + 60 * third
    return 3600.0 * first + 60 * second + third
