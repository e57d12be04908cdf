"""Compare an answer with what happened: which phrases it tells are right, and which that it should tell it does.

A phrase is an event with its size, colour, shape and direction, or a conclusion (two things are red; nothing is blue; the thing that
comes last). An event is taken for one that happened if at most one of its attributes is wrong and twice as many are right; any other
is invented. The list that only supports a conclusion is asked of an answer that has a list: "Two." answers "How many things are red?".
What the video shows is read from the row's caption. Texts in which nothing is understood get no score.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import numpy as np

from examples.events.reading import Said, read, value_asked
from examples.events.world import ATTRIBUTES, ORDINALS, STYLES, UNSEEN_KINDS, Event, solve
from vidalign.data.final_answer import answering_part, without_reasoning
from vidalign.types import Example


@dataclasses.dataclass(frozen=True)
class Reply:
    """A text as it was read: the events that it lists, in its reasoning if it has one, and its conclusion."""

    events: tuple[Said, ...]
    named: Said | None  # the thing that comes first, second or last, if the question asks for one
    counts: dict[str, int]

    @property
    def is_understood(self) -> bool:
        return bool(self.events or self.named or self.counts)


@dataclasses.dataclass(frozen=True)
class Match:
    """Which told event is which true one: (index told, index true, number of attributes that are wrong)."""

    pairs: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Marks:
    """What was counted in one reply. `attributes` maps each attribute to (right, told, asked)."""

    right: int  # phrases told that are right
    told: int
    found: int  # phrases asked for that are told, whole and right
    asked: int
    attributes: dict[str, tuple[int, int, int]]
    invented: int
    events: int  # told
    omitted: int
    listed: int  # events that the list should hold
    tau: float | None  # Kendall's, of the matched events; None for fewer than two
    contradicts: bool | None  # whether the conclusion is not that of its own list; None without both
    kinds: dict[bool, tuple[int, int]]  # unseen or not -> (found, asked) of whole events


def harmonic(right: int, told: int, found: int, asked: int) -> float:
    """F1 of precision right / told and recall found / asked."""
    precision, recall = right / told if told else 0.0, found / asked if asked else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def parse(text: str, question: str) -> Reply:
    """Read a reply to a question."""
    answer, unfinished = answering_part(text)
    ordinal = ordinal_asked(question)
    if unfinished:
        return Reply(read(without_reasoning(text)[0]).events, None, {})
    if ordinal is None:
        told = read(answer, question)
        return Reply(told.events, None, dict(told.counts))
    said = without_reasoning(text)[0].strip()
    thought = text.strip().removesuffix(said)
    if not thought:  # a list in plain sentences before the one that answers
        *sentences, answer = [sentence for sentence in re.split(r"(?<=[.!?\n])\s+", answer) if sentence.strip()] or [""]
        thought = " ".join(sentences)
    reasoned, named = read(thought).events, read(answer).events
    if not reasoned and len(named) > 1:
        return Reply(named, None, {})
    return Reply(reasoned, named[-1] if named else None, {})


def as_events(said: Sequence[Said]) -> list[Event]:
    """What is said of events, where everything is said. Raises `ValueError` where something is left open."""
    for event in said:
        if len(event.stated()) < len(ATTRIBUTES):
            raise ValueError(
                f"not told: {', '.join(set(ATTRIBUTES) - set(event.stated()))} of {' '.join(event.stated().values())}"
            )
    if not said:
        raise ValueError("no event is told")
    return [Event(**event.stated()) for event in said]


def ordinal_asked(question: str) -> str | None:
    """ "last" in "Which thing comes last?"; None if a question asks for no such thing."""
    return next((word for word in ORDINALS if f"comes {word}" in question.casefold()), None)


def mark(reply: str, example: Example) -> Marks | None:
    """Compare a reply with the row's answer and caption; None where nothing in the reply is understood.

    Raises:
        ValueError: the row's own answer is not understood.
    """
    said, right = parse(reply, example.question), parse(example.answer, example.question)
    if not right.is_understood:
        raise ValueError(f"row {example.id}: no event and no number is understood in its answer {example.answer!r}")
    if not said.is_understood:
        return None
    truth = read(example.caption).events or right.events
    match = matched(said.events, truth)
    concluded, concluded_right = conclusions(said, right, truth)
    wanted = bool(right.named or right.counts)
    asks_list = bool(said.events) or not wanted
    whole = {true: not wrong and _complete(said.events[told], truth[true]) for told, true, wrong in match.pairs}
    asked = len(truth) if asks_list else 0
    return Marks(
        right=sum(not wrong for _, _, wrong in match.pairs) + concluded_right,
        told=len(said.events) + concluded,
        found=sum(whole.values()) + (concluded_right if wanted else 0),
        asked=asked + wanted,
        attributes=_by_attribute(said, truth if asks_list else (), match, (concluded_right, concluded, int(wanted))),
        invented=len(said.events) - len(match.pairs),
        events=len(said.events),
        omitted=asked - len(match.pairs) if asks_list else 0,
        listed=asked,
        tau=_tau(match),
        contradicts=contradicts(said, example.question),
        kinds=_by_kind(truth if asks_list else (), whole),
    )


def matched(told: Sequence[Said], truth: Sequence[Said]) -> Match:
    """Each told event with at most one true one: first the pairs that agree most, then those closest in place."""
    fits = []
    for (i, said), (j, true) in itertools.product(enumerate(told), enumerate(truth)):
        stated = said.stated()
        wrong = sum(getattr(true, name) not in (None, value) for name, value in stated.items())
        right = sum(getattr(true, name) == value for name, value in stated.items())
        if wrong <= 1 and right >= max(1, 2 * wrong):
            fits.append((wrong, -right, abs(i - j), i, j))
    pairs: dict[int, tuple[int, int]] = {}
    for wrong, _, _, i, j in sorted(fits):
        if i not in pairs and j not in [true for true, _ in pairs.values()]:
            pairs[i] = (j, wrong)
    return Match(tuple((i, j, wrong) for i, (j, wrong) in sorted(pairs.items())))


def conclusions(said: Reply, right: Reply, truth: Sequence[Said]) -> tuple[int, int]:
    """How many conclusions a reply draws, and how many of them are right."""
    num_right = 0
    for value, number in said.counts.items():
        known = sum(value in event.stated().values() for event in truth)
        num_right += number == right.counts.get(value, known)
    if said.named is None:
        return len(said.counts), num_right
    true = right.named
    is_right = true is not None and all(getattr(true, name) in (None, v) for name, v in said.named.stated().items())
    return len(said.counts) + 1, num_right + int(is_right and _identifies(said.named, truth))


def _identifies(named: Said, truth: Sequence[Said]) -> bool:
    """Whether what is said of a thing fits one true event only."""
    fits = [e for e in truth if all(getattr(e, name) in (None, value) for name, value in named.stated().items())]
    return len(fits) <= 1


def contradicts(said: Reply, question: str) -> bool | None:
    """Whether a reply's conclusion differs from what its own list says; None where it has not both."""
    if not said.events or not (said.named or said.counts):
        return None
    if said.named is not None:
        place = {"first": 0, "second": min(1, len(said.events) - 1), "last": -1}[ordinal_asked(question) or "last"]
        event = said.events[place]
        return any(getattr(event, name) not in (None, value) for name, value in said.named.stated().items())
    value = value_asked(question)
    wanted = {value: said.counts[value]} if value in said.counts else said.counts
    return any(sum(v in event.stated().values() for event in said.events) != number for v, number in wanted.items())


def _complete(said: Said, true: Said) -> bool:
    return set(true.stated()) <= set(said.stated())


def _by_attribute(
    said: Reply, truth: Sequence[Said], match: Match, concluded: tuple[int, int, int]
) -> dict[str, tuple[int, int, int]]:
    counted = {}
    for name in ATTRIBUTES:
        told = sum(getattr(event, name) is not None for event in said.events)
        asked = sum(getattr(event, name) is not None for event in truth)
        pairs = [(said.events[i], truth[j]) for i, j, _ in match.pairs if j < len(truth)]
        counted[name] = (sum(getattr(a, name) == getattr(b, name) is not None for a, b in pairs), told, asked)
    return counted | {"conclusion": concluded}


def _by_kind(truth: Sequence[Said], whole: dict[int, bool]) -> dict[bool, tuple[int, int]]:
    kinds = [(event.shape, event.colour, event.direction) in UNSEEN_KINDS for event in truth]
    return {
        unseen: (sum(whole.get(j, False) for j, k in enumerate(kinds) if k is unseen), kinds.count(unseen))
        for unseen in (False, True)
    }


def _tau(match: Match) -> float | None:
    order = [true for _, true, _ in match.pairs]
    pairs = list(itertools.combinations(order, 2))
    return float(np.mean([1 if a < b else -1 for a, b in pairs])) if pairs else None


def retold(text: str, question: str, model: str) -> str | None:
    """What a text tells of events, as an answer to the question in the style of another answer; None where that cannot be said."""
    said = model.split()
    style = next((place for place in reversed(range(len(STYLES))) if STYLES[place].split()[-2] in said), None)
    if style is None:  # conclusions have "moves" in every style, so that its verb is looked for last
        return None
    try:
        return solve(as_events(parse(text, question).events), question, style)
    except ValueError:  # an event is told in part, or the list does not answer the question
        return None
