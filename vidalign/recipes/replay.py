"""Negatives from the ground truth itself: the policy resamples one segment of it (after SAPO, with the round's policy as EMA policy).

    ground truth = A + B + C, cut at random words      rejected = A + B' + C, B' generated after A; without C if B' ends the reply

Negatives of earlier rounds stay in a buffer, and one that was drawn t times is drawn with weight 1 / (t + 1). It is not assumed
that B' is worse than B: pairing compares trust.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from vidalign.data.words import undivided_words
from vidalign.types import Response

_WORD = re.compile(r"\s*\S+")


@dataclasses.dataclass(frozen=True)
class Cut:
    """A text in three parts; joined they are the text. Only `before` and `after` may be empty."""

    before: str
    segment: str
    after: str

    def with_segment(self, text: str, *, ended: bool) -> str:
        """The text with another segment. `ended` says that the new segment ends the reply, so nothing follows it."""
        return self.before + text + ("" if ended else self.after)


def cut(text: str, rng: np.random.Generator) -> Cut:
    """Cut at word boundaries; every segment of at least one word is equally likely.

    White space goes with the next word, punctuation with the word before; texts without spaces are divided by a dictionary.
    """
    words = [word for part in _WORD.findall(text.strip()) for word in undivided_words(part)]
    assert words, "a ground truth is never empty"
    segments = [(first, last) for first in range(len(words)) for last in range(first + 1, len(words) + 1)]
    first, last = segments[rng.integers(len(segments))]
    return Cut("".join(words[:first]), "".join(words[first:last]), "".join(words[last:]))


def draw(pool: Sequence[Response], times_drawn: Mapping[tuple[str, str], int], rng: np.random.Generator) -> Response:
    """Draw one response from a non-empty pool, with weight 1 / (times drawn + 1). Keys are (example id, stripped text)."""
    weights = np.array([1 / (times_drawn.get((r.example_id, r.text.strip()), 0) + 1) for r in pool])
    return pool[rng.choice(len(pool), p=weights / weights.sum())]
