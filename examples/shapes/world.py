"""A small world of coloured shapes that cross the frame: scenes, their frames, and questions with their true answers.

A scene is plain data (`Scene.to_row`), so a rule can judge a response without looking at a video.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from PIL import Image

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow")
DIRECTIONS = ("left", "right", "up", "down")
CATEGORIES = ("motion", "colour", "shape", "order", "presence", "description", "choice")
NUM_OPTIONS = 3
SIZE = 112  # pixels, height and width of a rendered frame

RGB = {"red": (220, 45, 45), "green": (45, 190, 70), "blue": (55, 90, 235), "yellow": (235, 210, 45)}
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x grows to the right, y downwards


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object: it crosses the frame in `direction` between `start` and `stop` (fractions of the video's length).

    `lane` is the position of its centre across the direction of motion, and `radius` is half its width, both in pixels.
    """

    shape: str
    colour: str
    direction: str
    start: float = 0.0
    stop: float = 1.0
    lane: int = SIZE // 2
    radius: int = 20

    @property
    def name(self) -> str:
        """Colour and shape, as in "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """One or two things in order of appearance, on a grey background (0-255). Two things differ in shape and colour."""

    things: tuple[Thing, ...]
    background: int = 40

    def to_row(self) -> dict[str, Any]:
        """The scene as a plain dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The scene of a `to_row`."""
        return cls(tuple(Thing(**thing) for thing in row["things"]), row["background"])


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a scene with its true answer; `options` is non-empty for multiple choice and includes `answer`."""

    question: str
    answer: str
    category: str
    options: tuple[str, ...] = ()


# -- scenes ------------------------------------------------------------------------------------------------------------


def make_scene(kinds: Sequence[tuple[str, str, str]], rng: np.random.Generator) -> Scene:
    """Place one or two things (shape, colour, direction) in a scene; two of them appear in succession."""
    spans = [(0.0, 1.0)] if len(kinds) == 1 else [(0.0, 0.5), (0.5, 1.0)]
    things = tuple(
        Thing(*kind, start, stop, lane=int(rng.integers(34, SIZE - 33)), radius=int(rng.integers(20, 26)))
        for kind, (start, stop) in zip(kinds, spans, strict=True)
    )
    return Scene(things, background=int(rng.integers(10, 80)))


def balanced_kinds(rng: np.random.Generator) -> Iterator[tuple[str, str, str]]:
    """Endless (shape, colour, direction): every combination once, in random order, before any is repeated."""
    kinds = [(shape, colour, direction) for shape in SHAPES for colour in COLOURS for direction in DIRECTIONS]
    while True:
        for index in rng.permutation(len(kinds)):
            yield kinds[index]


def balanced_scenes(num_things: int, rng: np.random.Generator) -> Iterator[Scene]:
    """Endless scenes of one or two things, in which shapes, colours and directions are independent."""
    kinds = balanced_kinds(rng)
    for first in kinds:
        others = (kind for kind in kinds if kind[0] != first[0] and kind[1] != first[1])
        yield make_scene([first] if num_things == 1 else [first, next(others)], rng)


# -- frames ------------------------------------------------------------------------------------------------------------


@functools.cache
def sprite(shape: str, radius: int) -> np.ndarray:
    """Boolean mask [2r+1, 2r+1] of a shape."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1] / radius
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "triangle":
        return abs(x) <= (y + 1) / 2
    assert shape == "cross", shape
    return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1)


def centre(thing: Thing, progress: float) -> tuple[int, int]:
    """Pixel (x, y) of a thing's centre after the share `progress` (0 to 1) of its path."""
    dx, dy = STEP[thing.direction]
    reach = SIZE / 2 - thing.radius - 2
    along = SIZE / 2 + (2 * progress - 1) * reach * (dx + dy)
    return (round(along), thing.lane) if dx else (thing.lane, round(along))


def render(scene: Scene, times: Sequence[float]) -> np.ndarray:
    """Frames [F, 112, 112, 3] uint8 at `times`, fractions of the video's length in [0, 1]."""
    frames = np.full((len(times), SIZE, SIZE, 3), scene.background, np.uint8)
    for frame, time in zip(frames, times, strict=True):
        for thing in scene.things:
            if not (thing.start <= time < thing.stop or (time >= 1 == thing.stop)):
                continue
            x, y = centre(thing, (time - thing.start) / (thing.stop - thing.start))
            r = thing.radius
            frame[y - r : y + r + 1, x - r : x + r + 1][sprite(thing.shape, r)] = RGB[thing.colour]
    return frames


def halve(frames: np.ndarray) -> np.ndarray:
    """Resize frames [F, H, W, 3] uint8 to half the height and width, with the same filter as `vidalign.video.decoding`."""
    size = frames.shape[2] // 2, frames.shape[1] // 2
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames])


# -- questions ---------------------------------------------------------------------------------------------------------


def ask(scene: Scene, category: str, rng: np.random.Generator, *, yes: float = 0.5, named_first: float = 0.5) -> Question:
    """Write a question of a category that the scene can answer.

    `yes` is the share of presence questions whose answer is yes; `named_first` is the share of order questions that name the thing
    that appears first before the other. Order needs a scene with two things.
    """
    thing = scene.things[rng.integers(len(scene.things))]
    options: tuple[str, ...] = ()
    if category == "motion":
        question = f"Which way does the {thing.shape} move?"
    elif category == "colour":
        question = f"What colour is the {thing.shape}?"
    elif category == "shape":
        question = f"What shape is the {thing.colour} object?"
    elif category == "order":
        first, second = scene.things if rng.random() < named_first else scene.things[::-1]
        question = f"Which appears first, the {first.shape} or the {second.shape}?"
    elif category == "presence":
        question = f"Is there a {thing.name if rng.random() < yes else absent_name(scene, rng)}?"
    elif category == "choice":
        ask_colour = bool(rng.random() < 0.5)
        truth, values = (thing.colour, COLOURS) if ask_colour else (thing.direction, DIRECTIONS)
        listed = rng.permutation([value for value in values if value != truth])[: NUM_OPTIONS - 1].tolist()
        listed.insert(int(rng.integers(NUM_OPTIONS)), truth)
        options = tuple(listed)
        stem = f"What colour is the {thing.shape}?" if ask_colour else f"Which way does the {thing.shape} move?"
        question = f"{stem}\nChoose: {', '.join(options)}."
    else:
        assert category == "description", category
        question = "Describe the video."
    return Question(question, solve(scene, question), category, options)


def absent_name(scene: Scene, rng: np.random.Generator) -> str:
    """A "colour shape" that is not in the scene but shares its colour or its shape with a thing that is."""
    thing = scene.things[rng.integers(len(scene.things))]
    present = {thing.name for thing in scene.things}
    names = [f"{colour} {thing.shape}" for colour in COLOURS] + [f"{thing.colour} {shape}" for shape in SHAPES]
    return str(rng.choice([name for name in names if name not in present]))


def solve(scene: Scene, question: str) -> str:
    """The true answer, from only the question's words and the scene. Raises `ValueError` if the scene cannot answer it."""
    stem, _, listed = question.partition("\n")
    if stem == "Describe the video.":
        return ", then ".join(f"a {thing.name} moves {thing.direction}" for thing in scene.things).capitalize() + "."
    if match := re.fullmatch(r"Is there a (\w+ \w+)\?", stem):
        if match[1] in {thing.name for thing in scene.things}:
            return f"Yes, there is a {match[1]}."
        return f"No, there is no {match[1]}."
    if match := re.fullmatch(r"What shape is the (\w+) object\?", stem):
        return f"The {match[1]} object is a {_only(scene, 'colour', match[1]).shape}."
    if match := re.fullmatch(r"Which appears first, the (\w+) or the (\w+)\?", stem):
        pair = {_only(scene, "shape", shape) for shape in match.groups()}
        return f"The {min(pair, key=lambda thing: thing.start).shape} appears first."
    if match := re.fullmatch(r"Which way does the (\w+) move\?", stem):
        value, sentence = _only(scene, "shape", match[1]).direction, "The {} moves {}."
    elif match := re.fullmatch(r"What colour is the (\w+)\?", stem):
        value, sentence = _only(scene, "shape", match[1]).colour, "The {} is {}."
    else:
        raise ValueError(f"no rule answers {question!r}; the questions are those that ask() writes")
    return value if listed else sentence.format(match[1], value)


def read_description(text: str) -> Scene:
    """The scene that an answer to "Describe the video." describes. Raises `ValueError` for a text of any other form."""
    things = re.findall(r"[Aa] (\w+) (\w+) moves (\w+)", text)
    known = [thing for thing in things if thing[0] in COLOURS and thing[1] in SHAPES and thing[2] in DIRECTIONS]
    starts = [index / max(1, len(known)) for index in range(len(known) + 1)]
    scene = Scene(
        tuple(Thing(shape, colour, way, *starts[index : index + 2]) for index, (colour, shape, way) in enumerate(known))
    )
    if not known or solve(scene, "Describe the video.") != text.strip():
        raise ValueError(f"not a description as this world writes them: {text!r}")
    return scene


def _only(scene: Scene, attribute: str, value: str) -> Thing:
    found = [thing for thing in scene.things if getattr(thing, attribute) == value]
    if len(found) != 1:
        raise ValueError(f"the question needs exactly one {value} thing in the scene, found {len(found)} of {scene}")
    return found[0]
