"""How an answer is scored: exact match, agreement (the *trust* of LeanPO), correlation and intervals. Needs no torch.

Normalisation, everywhere in this file: Unicode NFKC, lower case, runs of white space become one space, and quotes, white
space and sentence punctuation (. , ; : ! ?) are stripped from both ends. Nothing else is removed: "not red" is not "red".
"""

from __future__ import annotations

import collections
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from vidalign.types import EvalAnswer, Example

_STRIPPED = " .,;:!?\"'`“”‘’。，；：！？"
_Z_95 = 1.959963984540054  # standard normal quantile at 0.975
_BELOW_ONE = math.nextafter(1.0, 0.0)
_OPTION = re.compile(r"\(?([a-z])(?:[.:)]+\s*|\s+[-–]\s+|$)(.*)", re.DOTALL)


def normalise(text: str) -> str:
    """Apply the normalisation of this module."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split()).strip(_STRIPPED)


def is_correct(text: str, example: Example) -> bool:
    """Whether `text` answers `example`, by exact match after normalisation.

    Open question: the text equals `example.answer`. Multiple choice (`example.options` not empty): the text is the right
    option's letter ("B", "B.", "(B)"), the letter with its own text ("B. left"), the option's text, or the full reference
    answer. A letter followed by another option's text is wrong. `example.answer` may be an option's text, its letter, or
    a sentence; in a sentence no option can be told to be the right one, so only the full sentence counts.
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
    """Index of the option that normalised `text` names; None when it names none. An option's own text wins over a letter."""
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


def agreement(text: str, answer: str) -> float:
    """Trust in [0, 1]: 1.0 on an exact match after normalisation, otherwise token-level F1, strictly below 1.0.

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


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation of two equally long sequences.

    Returns:
        A value in [-1, 1]; None when there are fewer than 3 points or either side is constant, where it is not defined.
    """
    if len(x) != len(y):
        raise ValueError(f"both sequences must be equally long, got {len(x)} and {len(y)}")
    points = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    if not all(math.isfinite(a) and math.isfinite(b) for a, b in points):
        raise ValueError("ranks need finite numbers, got NaN or infinity; leave unscored responses out")
    if len(points) < 3 or len({a for a, _ in points}) == 1 or len({b for _, b in points}) == 1:
        return None
    from scipy import stats  # costs half a second to import

    result: Any = stats.spearmanr([a for a, _ in points], [b for _, b in points])
    return float(result.statistic)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927, score interval without continuity correction).

    Returns:
        (low, high), fractions in [0, 1]; (0.0, 1.0) when `total` is 0, since nothing is known then.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"correct must lie between 0 and total, got {correct} of {total}")
    if total == 0:
        return 0.0, 1.0
    share, z2 = correct / total, _Z_95**2
    centre = share + z2 / (2 * total)
    half = _Z_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total))
    scale = 1 + z2 / total
    # At 0 and at `total` the exact bound is 0 and 1; rounding errors would leave it a hair outside or inside.
    low = 0.0 if correct == 0 else (centre - half) / scale
    high = 1.0 if correct == total else (centre + half) / scale
    return low, high


def accuracy_table(answers: Sequence[EvalAnswer]) -> dict[str, Any]:
    """Accuracy overall and by category.

    Returns:
        {"accuracy", "correct", "total", "low", "high", "by_category": {name: the same five keys}}; categories in
        alphabetical order; "accuracy" is None when there are no answers; low and high bound the 95 % Wilson interval.
    """
    groups: dict[str, list[EvalAnswer]] = {}
    for answer in answers:
        groups.setdefault(answer.category, []).append(answer)
    return {**_row(answers), "by_category": {name: _row(groups[name]) for name in sorted(groups)}}


def _row(answers: Sequence[EvalAnswer]) -> dict[str, Any]:
    correct, total = sum(answer.correct for answer in answers), len(answers)
    low, high = wilson_interval(correct, total)
    return {"accuracy": correct / total if total else None, "correct": correct, "total": total, "low": low, "high": high}
