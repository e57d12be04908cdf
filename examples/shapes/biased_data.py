"""The data that the tiny model is trained on from scratch, with the flaws that the model is meant to pick up.

In the biased world, circles are mostly red and red things mostly move left. For a thing that is not as usual, a careless writer of
answers often writes what is usual, says yes, or assumes that what is named first appears first. Hinted and reflection prompts come
from the balanced world.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from examples.shapes.tiny_model import FRAME_SIZE, NUM_FRAMES
from examples.shapes.world import (
    CATEGORIES,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Question,
    Scene,
    ask,
    halve,
    make_scene,
    render,
    solve,
)
from vidalign.prompts import DIFFERENCES, HINT, PLAIN, REFLECT, REWRITE, fill
from vidalign.recipes.phrases import differing_marks


@dataclasses.dataclass(frozen=True)
class Bias:
    """How strong each flaw is, as shares in [0, 1]. A share s of typical colours comes on top of chance: s + (1 - s) / 4 of circles
    are red.

    `careless` is the share of answers on `WELL_KNOWN` words that say what is usual, whatever the video shows; `careful` is that
    share for the other words. `unseen` is the share of videos that are noise and whose answers say what is usual: the part of a
    training mixture that teaches words without anything to look at.
    """

    colour_by_shape: float = 0.4
    direction_by_colour: float = 0.4
    yes: float = 0.6
    named_first: float = 0.6
    careless: float = 0.75
    careful: float = 0.15
    unseen: float = 0.1


NO_BIAS = Bias(colour_by_shape=0.0, direction_by_colour=0.0, yes=0.5, named_first=0.5, careless=0.0, careful=0.0, unseen=0.0)
WELL_KNOWN = ("circle", "triangle", "red", "blue")
TYPICAL_COLOUR = dict(zip(SHAPES, COLOURS, strict=True))
TYPICAL_SHAPE = dict(zip(COLOURS, SHAPES, strict=True))
TYPICAL_DIRECTION = dict(zip(COLOURS, DIRECTIONS, strict=True))
# Shares of the categories. As in the data set, questions that would require telling two things apart are asked of scenes with one.
ONE_THING = {"motion": 0.15, "colour": 0.1, "shape": 0.2, "presence": 0.2, "description": 0.2, "choice": 0.15}
TWO_THINGS = {"order": 0.4, "presence": 0.3, "description": 0.3}


@dataclasses.dataclass(frozen=True)
class Sample:
    """One training sample: frames [F, 56, 56, 3] uint8, and independent (prompt, reply) turns about them."""

    frames: np.ndarray
    turns: list[tuple[str, str]]


def biased_kind(bias: Bias, rng: np.random.Generator) -> tuple[str, str, str]:
    """A random (shape, colour, direction) of the biased world."""
    shape = str(rng.choice(SHAPES))
    colour = TYPICAL_COLOUR[shape] if rng.random() < bias.colour_by_shape else str(rng.choice(COLOURS))
    direction = TYPICAL_DIRECTION[colour] if rng.random() < bias.direction_by_colour else str(rng.choice(DIRECTIONS))
    return shape, colour, direction


def biased_scene(num_things: int, bias: Bias, rng: np.random.Generator) -> Scene:
    """A random scene of the biased world with one or two things."""
    kinds = [biased_kind(bias, rng)]
    while len(kinds) < num_things:
        kind = biased_kind(bias, rng)
        if kind[0] != kinds[0][0] and kind[1] != kinds[0][1]:
            kinds.append(kind)
    return make_scene(kinds, rng)


def draw_question(
    scene: Scene, bias: Bias, rng: np.random.Generator, weights: Mapping[str, float] | None = None
) -> Question:
    """A question about a scene, of a category that suits its number of things unless `weights` says otherwise."""
    weights = weights or (ONE_THING if len(scene.things) == 1 else TWO_THINGS)
    shares = np.array([weights.get(category, 0.0) for category in CATEGORIES])
    category = str(rng.choice(CATEGORIES, p=shares / shares.sum()))
    return ask(scene, category, rng, yes=bias.yes, named_first=bias.named_first)


def draw_frames(scene: Scene, rng: np.random.Generator, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """The frames [F, 56, 56, 3] uint8 that the model sees, with the small changes that a video codec makes."""
    times = (np.arange(num_frames) + rng.uniform(0.1, 0.9)) / num_frames
    frames = halve(render(scene, times))
    assert frames.shape == (num_frames, FRAME_SIZE, FRAME_SIZE, 3)
    noise = rng.integers(-6, 7, size=frames.shape, dtype=np.int16) + np.int16(rng.integers(-8, 9))
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def draw_sample(
    bias: Bias,
    rng: np.random.Generator,
    *,
    two_things: float = 0.5,
    hinted: float = 0.25,
    edited: float = 0.25,
    num_turns: int = 4,
    weights: Mapping[str, float] | None = None,
) -> Sample:
    """A video with plain questions from the biased world or, for the share `hinted`, with prompts that contain the answer.

    The share `edited` of these asks what a wrong answer gets wrong, or asks for a rewrite of the right answer with those errors.
    """
    num_things = 1 + int(rng.random() < two_things)
    if bias.unseen and rng.random() < bias.unseen:
        scene = biased_scene(num_things, bias, rng)
        questions = [draw_question(scene, bias, rng, weights) for _ in range(num_turns)]
        return Sample(
            rng.integers(0, 256, (NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 3), dtype=np.uint8),
            [(fill(PLAIN, question=question.question), usual_answer(scene, question)) for question in questions],
        )
    if rng.random() >= hinted:
        scene = biased_scene(num_things, bias, rng)
        questions = [draw_question(scene, bias, rng, weights) for _ in range(num_turns)]
        turns = [
            (
                fill(PLAIN, question=question.question),
                usual_answer(scene, question) if rng.random() < carelessness(bias, scene, question) else question.answer,
            )
            for question in questions
        ]
    else:
        scene = biased_scene(num_things, NO_BIAS, rng)
        questions = [draw_question(scene, NO_BIAS, rng, weights) for _ in range(num_turns)]
        turns = [edit_turn(question, rng) if rng.random() < edited else hinted_turn(question, rng) for question in questions]
    return Sample(draw_frames(scene, rng), turns)


def carelessness(bias: Bias, scene: Scene, question: Question) -> float:
    """How likely the answer to a question is what is usual; the first shape or colour that it asks about decides."""
    asked = [word for word in re.findall(r"\w+", question.question) if word in SHAPES + COLOURS]
    return bias.careless if [*asked, scene.things[0].shape][0] in WELL_KNOWN else bias.careful


def usual_answer(scene: Scene, question: Question) -> str:
    """The answer of somebody who does not look closely and writes what is usual."""
    words = question.question.rstrip("?").split()
    if question.category == "presence":
        return f"Yes, there is a {words[-2]} {words[-1]}."
    if question.category == "order":
        return f"The {words[4]} appears first."
    if question.category == "shape":
        return f"The {words[4]} object is a {TYPICAL_SHAPE[words[4]]}."
    changes = {}
    for thing in scene.things:
        if question.question.startswith("What colour"):
            changes[thing] = {"colour": TYPICAL_COLOUR[thing.shape]}
        else:
            changes[thing] = {"direction": TYPICAL_DIRECTION[thing.colour]}
    usual = Scene(tuple(dataclasses.replace(thing, **change) for thing, change in changes.items()), scene.background)
    answer = solve(usual, question.question)
    return answer if not question.options or answer in question.options else question.answer


def hinted_turn(question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt with a hint or, equally often, one that quotes an earlier and mostly wrong response; and the right answer."""
    if rng.random() < 0.5:
        return fill(HINT, question=question.question, answer=question.answer), question.answer
    previous = question.answer if rng.random() < 0.3 else wrong_answer(question, rng)
    return fill(REFLECT, question=question.question, answer=question.answer, previous=previous), question.answer


def edit_turn(question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """A prompt that asks for the differences between the right and a wrong answer, or for a rewrite with them, and its reply."""
    wrong = parallel_wrong_answer(question, rng)
    spans = differing_marks(question.answer, wrong)
    listed = "\n".join(
        f"{question.answer[first:last]} => {wrong[start:end]}" for (first, last), (start, end) in zip(*spans, strict=True)
    )
    if rng.random() < 0.5:
        return fill(DIFFERENCES, question=question.question, answer=question.answer, previous=wrong), listed
    return fill(REWRITE, question=question.question, answer=question.answer, previous=listed), wrong


def wrong_answer(question: Question, rng: np.random.Generator) -> str:
    """Another answer of the same category: mostly wrong, and in the right form."""
    if question.options:
        return str(rng.choice(question.options))
    scene = biased_scene(2 if question.category == "order" else 1 + int(rng.random() < 0.5), NO_BIAS, rng)
    return ask(scene, question.category, rng).answer


def parallel_wrong_answer(question: Question, rng: np.random.Generator) -> str:
    """A wrong answer to this question that differs from the right one only in single words."""
    words = question.question.rstrip("?").split()
    if question.category == "presence":
        name = f"{words[-2]} {words[-1]}"
        return f"No, there is no {name}." if question.answer.startswith("Yes") else f"Yes, there is a {name}."
    if question.category == "order":
        return f"The {words[-1] if words[4] in question.answer else words[4]} appears first."
    if question.options:
        return str(rng.choice([option for option in question.options if option != question.answer]))
    text = question.answer
    num_changes = 1 + int(question.category == "description" and rng.random() < 0.5)
    asked = set(re.findall(r"\w+", question.question))
    spots = [word for word in re.finditer(r"\w+", text) if _kind(word[0]) and word[0] not in asked]
    for at in sorted(rng.permutation(len(spots))[:num_changes], reverse=True):
        word = spots[at]
        other = rng.choice([value for value in _kind(word[0]) if value != word[0]])
        text = text[: word.start()] + other + text[word.end() :]
    return text


def _kind(word: str) -> tuple[str, ...]:
    return next((values for values in (SHAPES, COLOURS, DIRECTIONS) if word in values), ())
