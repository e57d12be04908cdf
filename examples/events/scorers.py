"""The scorers of the events task, and the table of figures that belongs to them.

    evaluate.scorer: examples.events.scorers:phrase_f1    F1 of whole phrases; 1 is right in everything
    recipe.trust:    examples.events.scorers:agreement    F1 by attribute against the row's own answer, which may be imperfect
    recipe.compare:  examples.events.scorers:same_conclusion    whether two answers name the same thing

Figures of a table (`PhraseF1.measure`), over all answers of a model, as shares in [0, 1] unless said otherwise:

    precision, recall, f1        of whole phrases            f1.colour …        by attribute, and of conclusions
    recall.seen, recall.unseen   of whole events by whether their kind occurs in training questions
    chair_i                      told events that did not happen
    chair_s, chair_v             answers, and videos, with at least one such event
    omitted                      events that the list should hold and does not
    kendall_tau                  of the order of told events, -1 to 1, mean over answers that tell two
    contradicts                  conclusions that differ from the answer's own list; .reasoning: of the reasoning form alone
    words                        of an answer, mean          exact              answers equal to the ground truth
    not_understood               answers in which nothing is read; they count as telling nothing
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from examples.events.phrases import Marks, harmonic, mark, parse
from vidalign.data.words import normalise
from vidalign.types import Example


class PhraseF1:
    """F1 of a reply's phrases, in [0, 1]; None where nothing in it is understood."""

    def __call__(self, reply: str, example: Example) -> float | None:
        marks = mark(reply, example)
        return None if marks is None else harmonic(marks.right, marks.told, marks.found, marks.asked)

    def measure(self, replies: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        """The figures of all replies of one model, see the module. Empty without replies."""
        if not replies:
            return {}
        understood = [mark(reply, example) for reply, example in zip(replies, examples, strict=True)]
        rows = [(row, found or mark_of_nothing(row)) for row, found in zip(examples, understood, strict=True)]
        marks = [found for _, found in rows]
        taus = [found.tau for found in marks if found.tau is not None]
        concluded = [found for found in marks if found.contradicts is not None]
        reasoned = [m for example, m in rows if m.contradicts is not None and example.category == "reasoning"]
        videos: dict[str, int] = collections.defaultdict(int)
        for example, found in rows:
            videos[example.video] += found.invented
        exact = [normalise(reply) == normalise(row.answer) for reply, row in zip(replies, examples, strict=True)]
        figures = _phrase_figures(marks) | {
            "chair_i": _share(sum(m.invented for m in marks), sum(m.events for m in marks)),
            "chair_s": _mean([m.invented > 0 for m in marks]),
            "chair_v": _mean([count > 0 for count in videos.values()]),
            "omitted": _share(sum(m.omitted for m in marks), sum(m.listed for m in marks)),
            "kendall_tau": _mean(taus),
            "contradicts": _mean([bool(m.contradicts) for m in concluded]),
            "contradicts.reasoning": _mean([bool(m.contradicts) for m in reasoned]),
            "words": _mean([len(reply.split()) for reply in replies]),
            "exact": _mean(exact),
            "not_understood": _mean([found is None for found in understood]),
        }
        return {name: round(value, 4) for name, value in figures.items() if value is not None}


def agreement(reply: str, example: Example) -> float | None:
    """F1 of a reply's attributes and conclusions against the row's own answer; None where nothing is understood."""
    marks = mark(reply, dataclasses.replace(example, caption=""))
    if marks is None:
        return None
    right, told, asked = (sum(counts[place] for counts in marks.attributes.values()) for place in range(3))
    return harmonic(right, told, right, asked)


def same_conclusion(reply: str, example: Example) -> float | None:
    """Whether a reply names the thing that the row's answer names, for `recipe.compare`; None where one of them names none."""
    own, other = (parse(text, example.question).named for text in (reply, example.answer))
    return None if own is None or other is None else float(own == other)


phrase_f1 = PhraseF1()


def mark_of_nothing(example: Example) -> Marks:
    """The marks of a reply that tells nothing."""
    found = mark(example.answer, example)
    assert found is not None, example
    return dataclasses.replace(
        found,
        right=0,
        told=0,
        found=0,
        attributes={name: (0, 0, asked) for name, (_, _, asked) in found.attributes.items()},
        events=0,
        omitted=found.listed,
        tau=None,
        contradicts=None,
        kinds={unseen: (0, asked) for unseen, (_, asked) in found.kinds.items()},
    )


def _phrase_figures(marks: Sequence[Marks]) -> dict[str, float | None]:
    right, told, found, asked = (sum(getattr(m, name) for m in marks) for name in ("right", "told", "found", "asked"))
    figures: dict[str, float | None] = {
        "precision": _share(right, told),
        "recall": _share(found, asked),
        "f1": harmonic(right, told, found, asked),
    }
    for name in marks[0].attributes:
        hits, said, wanted = (sum(m.attributes[name][place] for m in marks) for place in range(3))
        figures[f"f1.{name}"] = harmonic(hits, said, hits, wanted)
    for unseen, label in ((False, "recall.seen"), (True, "recall.unseen")):
        figures[label] = _share(*(sum(m.kinds[unseen][place] for m in marks) for place in (0, 1)))
    return figures


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
