"""Key phrases: character spans in a response, found by comparing two responses.

A mark is a span (start, end) of characters, end excluded. Marks of one response are in order and do not overlap.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TypeAlias

from vidalign.data.words import word_spans
from vidalign.errors import DataError

Mark: TypeAlias = tuple[int, int]

_LISTED = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s*")
_QUOTES = " \t\"'`“”‘’.,;"


def differing_marks(chosen: str, rejected: str) -> tuple[tuple[Mark, ...], tuple[Mark, ...]]:
    """Spans of the words in which two responses differ, on each side.

    Words are compared in order (difflib's longest matching blocks, without its junk heuristic, which ignores frequent words
    in long texts). Words that were only inserted are marked on the side that has them. Responses that differ in nothing but
    white space give no mark. Scripts without spaces between words are divided into words by a dictionary (`vidalign.data.words`).
    """
    return _differing_marks(chosen, rejected, by_character=False)


def _differing_marks(chosen: str, rejected: str, *, by_character: bool) -> tuple[tuple[Mark, ...], tuple[Mark, ...]]:
    words = [word_spans(text, by_character=by_character) for text in (chosen, rejected)]
    spelled = [[text[start:end] for start, end in spans] for text, spans in zip((chosen, rejected), words, strict=True)]
    marks: tuple[list[Mark], list[Mark]] = ([], [])
    matcher = difflib.SequenceMatcher(None, spelled[0], spelled[1], autojunk=False)
    for tag, first_chosen, last_chosen, first_rejected, last_rejected in matcher.get_opcodes():
        if tag == "equal":
            continue
        for side, (first, last) in enumerate(((first_chosen, last_chosen), (first_rejected, last_rejected))):
            if first < last:
                marks[side].append((words[side][first][0], words[side][last - 1][1]))
    return tuple(marks[0]), tuple(marks[1])


def check_marks(text: str, marks: Sequence[Sequence[int]], where: str = "marks") -> tuple[Mark, ...]:
    """The marks as tuples. Raises `DataError` for a mark that is empty, outside `text`, out of order or overlapping."""
    checked: list[Mark] = []
    for mark in marks:
        if len(mark) != 2 or not 0 <= mark[0] < mark[1] <= len(text):
            raise DataError(
                f"{where}: {list(mark)} is not a span [start, end) within the {len(text)} characters of {text[:80]!r}; correct it"
            )
        if checked and mark[0] < checked[-1][1]:
            raise DataError(
                f"{where}: {list(mark)} overlaps {list(checked[-1])} or comes before it; sort the spans and join those that overlap"
            )
        checked.append((int(mark[0]), int(mark[1])))
    return tuple(checked)


def parse_differences(text: str) -> list[tuple[str, str]]:
    """(right phrase, wrong phrase) of every line "right => wrong", without list markers and quotes."""
    found = []
    for line in text.splitlines():
        right, arrow, wrong = line.partition("=>")
        if arrow:
            found.append((_LISTED.sub("", right).strip(_QUOTES), wrong.strip(_QUOTES)))
    return [(right, wrong) for right, wrong in found if right or wrong]


def differs_only_in(answer: str, rewritten: str, differences: Sequence[tuple[str, str]]) -> bool:
    """Whether a rewrite differs from the answer, and only in the listed phrases.

    Every word that differs must be part of an occurrence of a listed phrase on its own side; case matters. In scripts without
    spaces a phrase may end within a word, so there it is enough that every character that differs is part of one.
    """
    texts = answer.strip(), rewritten.strip()
    if not any(differing_marks(*texts)):
        return False
    return any(
        all(
            _covered(text, spans, [pair[side] for pair in differences if pair[side]], by_character=by_character)
            for side, (text, spans) in enumerate(
                zip(texts, _differing_marks(*texts, by_character=by_character), strict=True)
            )
        )
        for by_character in (False, True)
    )


def _covered(text: str, spans: Sequence[Mark], listed: Sequence[str], *, by_character: bool) -> bool:
    places = [match.span() for phrase in listed for match in re.finditer(re.escape(phrase), text)]
    words = [
        (first, last)
        for first, last in word_spans(text, by_character=by_character)
        if any(start <= first and last <= end for start, end in spans)
    ]
    return all(any(first <= start and end <= last for first, last in places) for start, end in words)
