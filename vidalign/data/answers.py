"""Whether a response is right, by exact match, and how far it agrees with the ground truth (the *trust* of LeanPO).

Normalisation, everywhere in this file: Unicode NFKC, lower case, runs of white space become one space, and quotes, white
space and sentence punctuation (. , ; : ! ?) are stripped from both ends. Nothing else is removed: "not red" is not "red".
"""

from __future__ import annotations

import collections
import math
import re
import unicodedata
from collections.abc import Sequence

from vidalign.types import Example

_STRIPPED = " .,;:!?\"'`“”‘’。，；：！？"
_BELOW_ONE = math.nextafter(1.0, 0.0)
_OPTION = re.compile(r"\(?([a-z])(?:[.:)]+\s*|\s+[-–]\s+|$)(.*)", re.DOTALL)


def normalise(text: str) -> str:
    """Apply the normalisation of this module."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).strip(_STRIPPED)


def is_correct(text: str, example: Example) -> bool:
    """Whether `text` answers `example`, by exact match after normalisation.

    Open question: the text equals `example.answer`. Multiple choice (`example.options` not empty): the text is the right
    option's letter ("B", "B.", "(B)"), the letter with its own text ("B. left"), the option's text, or the full ground truth.
    A letter followed by another option's text is wrong. `example.answer` may be an option's text, its letter, or a sentence;
    a sentence does not say which option is the right one, so only the full sentence counts.
    """
    given, reference = normalise(text), normalise(example.answer)
    if not given:
        return False
    if given == reference:
        return True
    options = [normalise(option) for option in example.options]
    right = _option_index(reference, options)
    return right is not None and _option_index(given, options) == right


def _option_index(text: str, options: Sequence[str]) -> int | None:
    """Index of the option that the normalised `text` names, or None. An option's own text takes precedence over a letter."""
    bare = [_without_letter(option, index) for index, option in enumerate(options)]
    for index, option in enumerate(options):
        if text in (option, bare[index]):
            return index
    match = _OPTION.fullmatch(text)
    if match is None:
        return None
    index = ord(match[1]) - ord("a")
    rest = normalise(match[2])
    return index if index < len(options) and rest in ("", options[index], bare[index]) else None


def _without_letter(option: str, index: int) -> str:
    """An option listed as "b. left" is also named by "left"."""
    match = _OPTION.fullmatch(option)
    return normalise(match[2]) if match and match[2] and ord(match[1]) - ord("a") == index else option


def token_f1(text: str, answer: str) -> float:
    """Overlap in [0, 1]: 1.0 on an exact match after normalisation, otherwise token-level F1, strictly below 1.0.

    The F1 is that of SQuAD (arXiv 1606.05250, section 6.1) over words without the punctuation at their ends, articles
    kept. The same words in another order are not the same answer, hence strictly below 1.0.
    """
    given, reference = normalise(text), normalise(answer)
    if given == reference:
        return 1.0
    ours, theirs = _words(given), _words(reference)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    if common == 0:
        return 0.0
    return min(2 * common / (len(ours) + len(theirs)), _BELOW_ONE)


def _words(text: str) -> list[str]:
    return [word for word in (normalise(part) for part in text.split()) if word]


def trust(text: str, example: Example) -> float:
    """How far a response agrees with the ground truth, in [0, 1]: 1 if evaluation counts it as correct, else `token_f1`."""
    return 1.0 if is_correct(text, example) else token_f1(text, example.answer)
