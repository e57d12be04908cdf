"""A small world of three events: coloured shapes of two sizes cross the frame one after the other. Scenes, questions and true answers.

Drawing is that of `examples.shapes.world`. An answer lists events in one of three styles, and most end in a conclusion from the list:

    question   how many, which is absent, which comes last …        list of events + style ─► `answer` ─► text

so that a list with errors in it gives an answer with the same errors: hints and careless writers (`careless.py`) are made that way.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from examples.shapes.world import COLOURS, DIRECTIONS, SHAPES, SIZE, Scene, Thing

SIZES = ("small", "large")
NUM_EVENTS = 3
CATEGORIES = ("happened", "order", "count", "absent", "description", "reasoning")
ATTRIBUTES = ("size", "colour", "shape", "direction")
VALUES = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "direction": DIRECTIONS}
RADIUS = {"small": (12, 15), "large": (22, 26)}  # pixels, from and below
ORDINALS = ("first", "second", "last")
NUMBERS = ("no", "one", "two", "three", "four")
# Eight of the 64 kinds, every value twice: no training question is about a video with one of them.
UNSEEN_KINDS = frozenset(
    (SHAPES[index], COLOURS[(index + shift) % 4], DIRECTIONS[(index + 2 * shift + 1) % 4])
    for index in range(4)
    for shift in (1, 2)
)


@dataclasses.dataclass(frozen=True)
class Event:
    """One thing that crosses the frame, as words."""

    size: str
    colour: str
    shape: str
    direction: str

    @property
    def kind(self) -> tuple[str, str, str]:
        """Shape, colour and direction: one of 64."""
        return self.shape, self.colour, self.direction

    @property
    def name(self) -> str:
        """Size, colour and shape, as in "small red circle"."""
        return f"{self.size} {self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a scene. `about` is what its conclusion is about: a value ("red"), or an ordinal ("last"), or nothing."""

    text: str
    category: str
    about: str = ""


# -- scenes ------------------------------------------------------------------------------------------------------------


def make_scene(kinds: Sequence[tuple[str, str, str]], rng: np.random.Generator) -> Scene:
    """Place things (shape, colour, direction) of random sizes one after the other, each for the same share of the video."""
    edges = np.linspace(0.0, 1.0, len(kinds) + 1).round(6).tolist()
    things = []
    for kind, span in zip(kinds, itertools.pairwise(edges), strict=True):
        radius = int(rng.integers(*RADIUS[SIZES[int(rng.integers(2))]]))
        things.append(Thing(*kind, *span, lane=int(rng.integers(34, SIZE - 33)), radius=radius))
    return Scene(tuple(things), background=int(rng.integers(10, 80)))


def balanced_scenes(rng: np.random.Generator, *, unseen: bool) -> Iterator[Scene]:
    """Endless scenes of three things with three names, each kind about equally often; with or without the kinds kept `unseen`."""
    kinds = [kind for kind in itertools.product(SHAPES, COLOURS, DIRECTIONS) if unseen or kind not in UNSEEN_KINDS]
    stream = (kinds[index] for _ in itertools.count() for index in rng.permutation(len(kinds)))
    waiting: list[tuple[str, str, str]] = []
    while True:
        chosen: list[tuple[str, str, str]] = []
        while len(chosen) < NUM_EVENTS:
            fits = (kind for kind in waiting if kind[:2] not in [other[:2] for other in chosen])
            kind = next(fits, None)
            if kind is None:
                waiting.append(next(stream))
            else:
                waiting.remove(kind)
                chosen.append(kind)
        yield make_scene(chosen, rng)


def events_of(scene: Scene) -> list[Event]:
    """What happens in a scene, in order."""
    return [Event(size_of(thing), thing.colour, thing.shape, thing.direction) for thing in scene.things]


def size_of(thing: Thing) -> str:
    """The word for a thing's size."""
    return "small" if thing.radius < RADIUS["large"][0] else "large"


# -- texts -------------------------------------------------------------------------------------------------------------

STYLES = (
    "a {size} {colour} {shape} moves {direction}",
    "a {shape}, {size} and {colour}, goes {direction}",
    "there is a {colour} {shape} of {size} size heading {direction}",
)


def tell(event: Event, style: int) -> str:
    """An event in one of the three styles."""
    return STYLES[style].format(**dataclasses.asdict(event))


def listed(events: Sequence[Event], style: int) -> str:
    """Events in the order of a list, without a full stop: "First …, then …, and finally …"."""
    told = [tell(event, style) for event in events]
    if len(told) < 2:
        return f"First {told[0]}" if told else "Nothing happens"
    between = "".join(f", then {text}" for text in told[1:-1])
    return f"First {told[0]}{between}, and finally {told[-1]}"


def answer(events: Sequence[Event], question: Question, style: int, named: Event | None = None) -> str:
    """What a writer says who believes that these events happened, in this order.

    `named` is the event that the answer after the reasoning names, if not the one that the list says.
    """
    if question.category == "description":
        count = NUMBERS[len(events)] if len(events) < len(NUMBERS) else str(len(events))
        things = "thing" if len(events) == 1 else "things"
        return f"The video shows {count} {things}: {'; '.join(tell(event, style) for event in events)}."
    text = listed(events, style)
    if question.category == "reasoning":
        named = named or at(events, question.about)
        return f"<think> {text} </think> The {named.name} comes {question.about}."
    if question.category == "count":
        return (
            f"{text}, so {counted(sum(question.about in dataclasses.astuple(event) for event in events), question.about)}."
        )
    if question.category == "absent":
        return f"{text}, so {counted(0, question.about)}."
    return f"{text}."


def at(events: Sequence[Event], ordinal: str) -> Event:
    """The event that comes first, second or last in a list that is not empty."""
    return events[{"first": 0, "second": min(1, len(events) - 1), "last": -1}[ordinal]]


def counted(number: int, value: str) -> str:
    """How many things have a value: "two things are red", "one thing moves left", "nothing is small"."""
    verbs = ("moves", "move") if value in DIRECTIONS else ("is", "are")
    noun = (
        ("a " if number <= 1 else "") + value + ("es" if value == "cross" else "s") * (number > 1)
        if value in SHAPES
        else value
    )
    if number == 0:
        return f"nothing {verbs[0]} {noun}"
    return f"{NUMBERS[number]} {'thing' if number == 1 else 'things'} {verbs[number > 1]} {noun}"


# -- questions ---------------------------------------------------------------------------------------------------------


def ask(events: Sequence[Event], category: str, rng: np.random.Generator) -> Question:
    """A question of a category about these events. It names no thing: values at most, and of these some that do not occur."""
    if category == "happened":
        return Question("What happens in the video?", category)
    if category == "order":
        return Question("In which order do the things appear?", category)
    if category == "description":
        return Question("Describe the video.", category)
    if category == "reasoning":
        ordinal = str(rng.choice(ORDINALS))
        return Question(f"Which thing comes {ordinal}? Think first.", category, ordinal)
    if category == "count":
        attribute = str(rng.choice(ATTRIBUTES))
        value = str(rng.choice(VALUES[attribute]))
        return Question(f"How many things {'move' if attribute == 'direction' else 'are'} {plural(value)}?", category, value)
    assert category == "absent", category
    attribute = str(rng.choice([name for name in ATTRIBUTES if name != "size"]))
    present = sorted({getattr(event, attribute) for event in events})
    absent = str(rng.choice([value for value in VALUES[attribute] if value not in present]))
    options = rng.permutation([absent, *rng.permutation(present)[:2].tolist()]).tolist()
    return Question(f"Which {attribute} is absent: {', '.join(options[:-1])} or {options[-1]}?", category, absent)


def question_of(text: str) -> Question:
    """The question that `ask` wrote, from its text; one for what is absent is `about` its options, as they are listed.

    Raises:
        ValueError: `ask` writes no such question.
    """
    fixed = {
        "What happens in the video?": "happened",
        "In which order do the things appear?": "order",
        "Describe the video.": "description",
    }
    if text in fixed:
        return Question(text, fixed[text])
    if match := re.fullmatch(r"Which thing comes (\w+)\? Think first\.", text):
        return Question(text, "reasoning", match[1])
    singular = {plural(value): value for values in VALUES.values() for value in values}
    if (match := re.fullmatch(r"How many things (?:are|move) (\w+)\?", text)) and match[1] in singular:
        return Question(text, "count", singular[match[1]])
    if match := re.fullmatch(r"Which \w+ is absent: (.*)\?", text):
        return Question(text, "absent", match[1])
    raise ValueError(f"no rule answers {text!r}; the questions are those that ask() writes")


def solve(events: Sequence[Event], text: str, style: int = 0) -> str:
    """The true answer to a question's text. Raises `ValueError` for a question that `ask` does not write."""
    question = question_of(text)
    if question.category == "absent":
        options = re.findall(r"\w+", question.about.replace(" or ", " "))
        absent = [value for value in options if not any(value in dataclasses.astuple(event) for event in events)]
        if len(absent) != 1:
            raise ValueError(f"{text!r} needs one option that does not occur, found {absent}")
        question = dataclasses.replace(question, about=absent[0])
    return answer(events, question, style)


def plural(value: str) -> str:
    """A value as it is said of several things: "circles", "red"."""
    return value + ("es" if value == "cross" else "s") if value in SHAPES else value
