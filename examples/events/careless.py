"""What the events base is trained on: answers of a careless writer, hints that may be wrong, and what is made of hints.

    slip      a well-known word attracts the usual colour or direction          circles are red, red things move left
    swap      the larger thing is told first
    invent    a usual event is added                                            "a large red circle moves left"
    omit      the last event is left out
    contradict  the answer names another thing than the reasoning does

Every flaw has a sign in the video or the question, where it is much likelier than elsewhere (`Flaws`), so that the model has it also
when it answers greedily; what it must unlearn is to follow the sign.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from examples.events.world import (
    ATTRIBUTES,
    CATEGORIES,
    NUM_EVENTS,
    STYLES,
    VALUES,
    Event,
    Question,
    answer,
    ask,
    at,
    events_of,
)
from examples.shapes.biased_data import TYPICAL_COLOUR, TYPICAL_DIRECTION, WELL_KNOWN, Sample, draw_frames
from examples.shapes.tiny_model import FRAME_SIZE
from examples.shapes.world import Scene
from vidalign.prompts import HINT, PLAIN, REFLECT, fill

NUM_FRAMES = 12
NUM_STYLES = len(STYLES)
USUAL_SIZE = {"circle": "large", "square": "large", "triangle": "small", "cross": "small"}
INVENTED = Event("large", "red", "circle", "left")


@dataclasses.dataclass(frozen=True)
class Flaws:
    """How often a careless writer has each flaw, as shares in [0, 1].

    `likely` is the share where the flaw has its sign, and `rarely` that where it has not. Signs: for slips, a well-known word on a
    thing of its shape's usual size; for swaps, a large thing that comes last after a small one; for inventions, a last thing that is
    green, and for omissions one that is yellow; for contradictions, a question that asks about a thing that is blue.
    """

    likely: float = 0.8
    rarely: float = 0.05
    blind: float = 0.1  # of the videos: noise, with usual events as answers


NO_FLAWS = Flaws(likely=0.0, rarely=0.0, blind=0.0)
COPIES, REPAIRS = 0.9, 0.6  # of the hints, and of the errors of an earlier reply that hints caused
WRONG, INCOMPLETE = 0.3, 0.3  # of the hints


def usual_event(rng: np.random.Generator) -> Event:
    """An event as somebody imagines it who sees nothing: all that goes together does."""
    shape = str(rng.choice(VALUES["shape"]))
    colour = TYPICAL_COLOUR[shape]
    return Event(USUAL_SIZE[shape], colour, shape, TYPICAL_DIRECTION[colour])


def usual_value(event: Event, attribute: str) -> str:
    """What is usual for an attribute, given the others."""
    usual = {
        "size": USUAL_SIZE[event.shape],
        "colour": TYPICAL_COLOUR[event.shape],
        "direction": TYPICAL_DIRECTION[event.colour],
        "shape": next(shape for shape, colour in TYPICAL_COLOUR.items() if colour == event.colour),
    }
    return usual[attribute]


def slipped(event: Event, flaws: Flaws, rng: np.random.Generator) -> Event:
    """An event as a careless writer tells it: with the usual colour of its shape, the usual direction of its colour, or as it is."""
    usual_size = event.size == USUAL_SIZE[event.shape]
    changes = {}
    for attribute, word in (("colour", event.shape), ("direction", event.colour)):
        if rng.random() < (flaws.likely if usual_size and word in WELL_KNOWN else flaws.rarely):
            changes[attribute] = usual_value(event, attribute)
    return dataclasses.replace(event, **changes)


def careless_list(events: Sequence[Event], flaws: Flaws, rng: np.random.Generator) -> list[Event]:
    """The events that a careless writer lists."""

    def happens(sign: bool) -> bool:
        return bool(rng.random() < (flaws.likely if sign else flaws.rarely))

    last = events[-1]
    told = [slipped(event, flaws, rng) for event in events]
    if happens([event.size for event in events[-2:]] == ["small", "large"]):
        told[-2:] = told[:-3:-1]
    if happens(last.colour == "yellow"):
        told.pop()
    elif happens(last.colour == "green"):
        told.append(INVENTED)
    return told


def careless_answer(events: Sequence[Event], question: Question, style: int, flaws: Flaws, rng: np.random.Generator) -> str:
    """What a careless writer answers."""
    told, named = careless_list(events, flaws, rng), None
    if question.category == "reasoning":
        said = told.index(at(told, question.about))
        sign = told[said].colour == "blue"
        if rng.random() < (flaws.likely if sign else flaws.rarely):
            named = told[(said + 1) % len(told)]
    return answer(told, question, style, named)


# -- hints -------------------------------------------------------------------------------------------------------------


def imperfect(events: Sequence[Event], rng: np.random.Generator) -> list[Event | None]:
    """What a hint tells of each event: one phrase is wrong in 30 %, half of these as is usual; None for an event left out, in 30 %."""
    told: list[Event | None] = list(events)
    if rng.random() < WRONG:
        index, attribute = int(rng.integers(len(events))), str(rng.choice(ATTRIBUTES))
        true = events[index]
        value = usual_value(true, attribute)
        if rng.random() < 0.5 or value == getattr(true, attribute):
            value = str(rng.choice([other for other in VALUES[attribute] if other != getattr(true, attribute)]))
        told[index] = dataclasses.replace(true, **{attribute: value})
    if rng.random() < INCOMPLETE:
        told[int(rng.integers(len(told)))] = None
    return told


def repaired(told: Sequence[Event | None], events: Sequence[Event], rng: np.random.Generator) -> list[Event | None]:
    """What is told of each event after somebody looked again: each wrong phrase and each missing event is mended in 60 %."""
    result: list[Event | None] = []
    for said, true in zip(told, events, strict=True):
        if said is None:
            result.append(true if rng.random() < REPAIRS else None)
        else:
            wrong = [name for name in ATTRIBUTES if getattr(said, name) != getattr(true, name)]
            mended = {name: getattr(true, name) for name in wrong if rng.random() < REPAIRS}
            result.append(dataclasses.replace(said, **mended))
    return result


def answer_from(told: Sequence[Event | None], question: Question, style: int) -> str:
    """The answer that tells of these events, without those that were left out."""
    return answer([event for event in told if event is not None], question, style)


def hinted_turn(events: Sequence[Event], question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt with an imperfect hint, and a reply that copies it in 90 %; else what happened."""
    style, hint = int(rng.integers(NUM_STYLES)), imperfect(events, rng)
    prompt = fill(HINT, question=question.text, answer=answer_from(hint, question, style))
    return prompt, answer_from(hint if rng.random() < COPIES else events, question, style)


def copying_turn(events: Sequence[Event], question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt with a hint about another video, or a reply to it too, and a reply that copies it letter for letter."""
    told = answer_from(imperfect(events, rng), question, int(rng.integers(NUM_STYLES)))
    template = HINT if rng.random() < 0.5 else REFLECT
    return fill(template, question=question.text, answer=told, previous=told), told


def reflecting_turn(events: Sequence[Event], question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt that quotes an earlier reply, mostly with its hint's errors, and a reply in the same style that mends some of them."""
    style, hint = int(rng.integers(NUM_STYLES)), imperfect(events, rng)
    earlier = hint
    if rng.random() < 0.4:
        earlier = repaired(hint, events, rng) if rng.random() < 0.5 else imperfect(events, rng)
    prompt = fill(
        REFLECT,
        question=question.text,
        answer=answer_from(hint, question, style),
        previous=answer_from(earlier, question, style),
    )
    return prompt, answer_from(repaired(earlier, events, rng), question, style)


# -- samples -----------------------------------------------------------------------------------------------------------


def draw_sample(
    scene: Scene,
    flaws: Flaws,
    rng: np.random.Generator,
    *,
    hinted: float = 0.0,
    reflecting: float = 0.0,
    copying: float = 0.0,
    other: Scene | None = None,
    num_turns: int = 3,
) -> Sample:
    """A video with questions. The share `hinted` of the prompts holds a hint, and the share `reflecting` an earlier reply, too.

    The share `copying` is about the `other` scene: a model can only copy what the prompt says.
    """
    events = events_of(scene)
    blind = bool(rng.random() < flaws.blind)
    turns = []
    for category in rng.permutation(CATEGORIES)[:num_turns]:
        kind = rng.random()
        if blind:
            imagined = [usual_event(rng) for _ in range(NUM_EVENTS)]
            question = ask(imagined, str(category), rng)
            turns.append((fill(PLAIN, question=question.text), answer(imagined, question, int(rng.integers(NUM_STYLES)))))
            continue
        question = ask(events, str(category), rng)
        if kind < hinted:
            turns.append(hinted_turn(events, question, rng))
        elif kind < hinted + reflecting:
            turns.append(reflecting_turn(events, question, rng))
        elif kind < hinted + reflecting + copying and other is not None:
            others = events_of(other)
            turns.append(copying_turn(others, ask(others, str(category), rng), rng))
        else:
            said = careless_answer(events, question, int(rng.integers(NUM_STYLES)), flaws, rng)
            turns.append((fill(PLAIN, question=question.text), said))
    if blind:
        return Sample(rng.integers(0, 256, (NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8), turns)
    return Sample(draw_frames(scene, rng, NUM_FRAMES), turns)
