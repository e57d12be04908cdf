"""Read what a text tells: events in their order, and how many things have a value. Wording and form do not matter.

    text ─► clauses ─► nothing is red, two things move left     counts (0 for what is absent)
                       a red circle … moves left                events, with what is said of each
                       first, last, before, after, preceded by  their order

Words for things that this world does not hold (a purple star) are read too, so that they can be wrong.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence

from examples.events.world import ATTRIBUTES

_SAME = {
    "size": {"small": "little tiny smaller", "large": "big huge bigger larger"},
    "colour": dict.fromkeys(("red", "green", "blue", "yellow", "purple", "orange", "pink", "black", "white", "brown"), ""),
    "shape": {
        "circle": "circles disc discs disk disks ball balls dot dots",
        "square": "squares box boxes",
        "triangle": "triangles",
        "cross": "crosses plus",
        **{name: f"{name}s" for name in ("rectangle", "star", "heart", "diamond", "hexagon", "oval", "ring")},
    },
    "direction": {
        "left": "leftward leftwards",
        "right": "rightward rightwards",
        "up": "upward upwards",
        "down": "downward downwards",
    },
}
WORDS = {  # word -> (attribute, value)
    word: (attribute, value)
    for attribute, values in _SAME.items()
    for value, others in values.items()
    for word in (value, *others.split())
}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: number for number, word in enumerate(_NUMBERS)}
PLURALS = frozenset(
    word for word, (name, value) in WORDS.items() if name == "shape" and word != value and word.endswith("s")
)
_GENERIC = frozenset({"thing", "things", "object", "objects", "item", "items", "ones"})
_THINGS = _GENERIC | {"one", "shape", "shapes", "of", "are", "is", "move", "moves", "go", "goes"}
_NEGATIONS = re.compile(r"\b(?:no|not|nothing|none|never|without|neither|nor|absent|missing|zero|lacks|lacking)\b|n't\b")
_CLAUSES = re.compile(r"[.;:!?\n]+|,?\s*\b(?:so|but|hence|thus|therefore|while|whereas)\b")
_RANKS = {
    "first": 0,
    "firstly": 0,
    "second": 1,
    "secondly": 1,
    "third": 2,
    "thirdly": 2,
    "last": 99,
    "lastly": 99,
    "finally": 99,
}
_OPPOSITE = {"left": "right", "right": "left", "top": "down", "bottom": "up", "above": "down", "below": "up"}
_ENDS = {"top": "up", "bottom": "down", "left": "left", "right": "right"}
_SIDE = r"(?:the )?(left|right|top|bottom|above|below)(?: side| edge)?"
_REWRITES = (
    (re.compile(rf"\bfrom {_SIDE} (?:in)?to {_SIDE}"), lambda m: _ENDS.get(m[2], "")),
    (re.compile(rf"\bfrom {_SIDE}"), lambda m: _OPPOSITE[m[1]]),
    (re.compile(r"\bto(?:wards?)? the (top|bottom)\b"), lambda m: _ENDS[m[1]]),
    (re.compile(r"\bright (?=after|before|away|then|behind)"), lambda m: ""),
    (re.compile(r"\b(shows?|ends?|lights?|turns?) up\b"), lambda m: m[1]),
    (re.compile(r"\b(after|before) (?:that|this|it|which|them)\b"), lambda m: "then" if m[1] == "after" else "before"),
    (re.compile(r"\bcross(?:es|ing)? (?=the (?:frame|screen|scene|video|image)|to |from |over |into |left|right)"), lambda m: ""),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Said:
    """What a text says of one event; None for what it leaves open."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    direction: str | None = None

    def stated(self) -> dict[str, str]:
        """The attributes that it states."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True)
class Told:
    """What a text tells: events in the order in which they are said to happen, and how many things have a value."""

    events: tuple[Said, ...]
    counts: Mapping[str, int]


def read(text: str, question: str = "") -> Told:
    """What a text tells. `question` says what a bare "two", "none" or "red" is about.

    Without events and counts, nothing was found that this reader understands.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    for pattern, becomes in _REWRITES:
        text = pattern.sub(becomes, text)
    events: list[dict[str, str]] = []
    ranks: list[int | None] = []
    counts: dict[str, int] = {}
    for clause in _CLAUSES.split(text):
        words = re.findall(r"\w+|,", clause or "")
        found = _count(words, bool(_NEGATIONS.search(clause or "")), question)
        if found is not None:
            counts |= found
            continue
        first = len(events)
        _read_events(words, events, ranks)
        if events[first:] and _tells_backwards(words):
            events[first:] = events[first:][::-1]
            ranks[first:] = ranks[first:][::-1]
    if None not in ranks and ranks:
        order = sorted(range(len(events)), key=lambda index: ranks[index] or 0)
        events = [events[index] for index in order]
    return Told(tuple(Said(**event) for event in events), counts)


def value_asked(question: str) -> str | None:
    """The value that a question about a number asks about, as "red" in "How many things are red?"."""
    if not re.search(r"\bhow many\b|\bnumber of\b", question.casefold()):
        return None
    return next((WORDS[word][1] for word in re.findall(r"\w+", question.casefold()) if word in WORDS), None)


def asks_absent(question: str) -> bool:
    """Whether a question asks for what does not occur."""
    return bool(_NEGATIONS.search(question.casefold()))


def _count(words: Sequence[str], negated: bool, question: str) -> dict[str, int] | None:
    """How many things have a value, if that is what a clause says; None if it tells of events or of nothing."""
    said = [word for word in words if word != ","]
    values = {WORDS[word][1] for word in said if word in WORDS}
    numbers = [index for index, word in enumerate(said) if word in NUMBERS or word.isdigit()]
    if negated:
        asked = value_asked(question)
        if len({WORDS[word][0] for word in said if word in WORDS}) > 1:
            return {}  # "no red circle moves left" says nothing of any single value
        return dict.fromkeys(values, 0) if values else {asked: 0} if asked else None
    if numbers:
        at = numbers[0]
        number = NUMBERS.get(said[at], int(said[at]) if said[at].isdigit() else 0)
        after = said[at + 1 : at + 4]
        generic = bool(_THINGS & set(after[:1])) or bool(_GENERIC & set(after))
        if len(values) == 1 and (generic or PLURALS & set(after)):
            return {values.pop(): number}
        asked = value_asked(question)
        if not values and asked is not None and len(numbers) == 1:
            return {asked: number}
        return None
    if asks_absent(question) and len(values) == 1 and not any(WORDS.get(word, ("",))[0] == "shape" for word in said[1:]):
        return {values.pop(): 0} if len(said) <= 6 else None
    return None


def _read_events(words: Sequence[str], events: list[dict[str, str]], ranks: list[int | None]) -> None:
    """Add the events of one clause, and what it says of earlier ones."""
    ahead: dict[str, str] = {}  # said before the noun that it belongs to
    current: dict[str, str] | None = events[-1] if events and words and words[0] in ("it", "this", "that") else None
    rank: int | None = None
    for index, word in enumerate(words):
        if word in _RANKS and words[index + 1 : index + 2] != ["of"]:
            rank = _RANKS[word]
            if current is not None and _comes(words, index):
                ranks[_index(events, current)], rank = rank, None
        if word not in WORDS:
            continue
        attribute, value = WORDS[word]
        if attribute == "shape":
            current = _event_of(words, index, {**ahead, "shape": value}, events)
            if current is None:
                current = {**ahead, "shape": value}
                events.append(current)
                ranks.append(rank)
            elif rank is not None:
                ranks[_index(events, current)] = rank
            ahead, rank = {}, None
        elif current is None or attribute in current or _belongs_to_next(words, index):
            ahead[attribute] = value
        else:
            current[attribute] = value
    if "direction" in ahead and current is None and events and "direction" not in events[-1]:
        events[-1].update(direction=ahead["direction"])  # "red circle: left"
    elif "direction" in ahead:
        events.append(ahead)  # "something moves left"
        ranks.append(rank)


def _index(events: Sequence[dict[str, str]], event: dict[str, str]) -> int:
    return next(index for index, other in enumerate(events) if other is event)


def _comes(words: Sequence[str], index: int) -> bool:
    """Whether "first" or "last" at a place says when the thing before it comes, as in "the circle comes last"."""
    return bool({"comes", "appears", "moves", "is", "happens", "goes", "the"} & set(words[max(0, index - 2) : index]))


def _belongs_to_next(words: Sequence[str], index: int) -> bool:
    """Whether an adjective stands before a noun, with only adjectives, "and" and commas between them."""
    if WORDS[words[index]][0] == "direction":
        return False
    for word in words[index + 1 :]:
        kind = WORDS.get(word, ("",))[0]
        if kind == "shape":
            return True
        if kind not in ("size", "colour") and word not in ("and", ",", "coloured", "colored", "sized"):
            return False
    return False


def _event_of(
    words: Sequence[str], index: int, said: Mapping[str, str], events: Sequence[dict[str, str]]
) -> dict[str, str] | None:
    """The event that "the red circle" speaks of again, if there is one before it that fits."""
    start = index
    while start > 0 and (WORDS.get(words[start - 1], ("",))[0] in ("size", "colour") or words[start - 1] == ","):
        start -= 1
    if start == 0 or words[start - 1] not in ("the", "this", "that", "same"):
        return None
    known = [event for event in events if all(event.get(name, value) == value for name, value in said.items())]
    fits = [event for event in known if event.get("shape") == said["shape"]]
    if not fits:
        return None
    fits[-1].update(said)
    return fits[-1]


def _tells_backwards(words: Sequence[str]) -> bool:
    """Whether a clause names the later of two events first."""
    nouns = [index for index, word in enumerate(words) if WORDS.get(word, ("",))[0] == "shape"]
    if len(nouns) != 2:
        return False
    for index, word in enumerate(words):
        between = nouns[0] < index < nouns[1]
        if (word in ("after", "preceded", "following") and between) or (word == "before" and index < nouns[0]):
            return True
    return False
