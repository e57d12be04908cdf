"""A scorer of one's own: the share of the ground truth's words that a reply names. For captions, which no rule calls right or wrong.

    recipe: {trust: "keywords:named"}            how far a response agrees with the ground truth, where pairs are made
    evaluate: {scorer: "keywords:named"}         what an answer is worth; right from evaluate.min_score on

A scorer is a function of a reply and its example that returns a score in [0, 1], or None where it cannot tell. Those replies go to
the judge, where there is one, and are otherwise counted apart. With a method `measure` it also gives figures of all replies.
"""

from __future__ import annotations

from collections.abc import Sequence

from vidalign.data.words import content_words
from vidalign.types import Example


class Named:
    """The share of the ground truth's words of content that a reply holds; None for a ground truth without any."""

    def __call__(self, reply: str, example: Example) -> float | None:
        wanted = set(content_words(example.answer))
        return len(wanted & set(content_words(reply))) / len(wanted) if wanted else None

    def measure(self, replies: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """Shown beside the accuracy: the mean number of words."""
        return {"words": sum(len(reply.split()) for reply in replies) / len(replies)} if replies else {}


named = Named()
