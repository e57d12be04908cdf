"""Does a choice of frames by the question find what evenly spread frames miss?

    vidalign bench needles [--questions 200 --seeds 3]

Each video has 64 frames. In 8 of them, two runs of four, a thing crosses the picture; the question names its colour and asks for its
shape. 8 frames are shown to the built-in model: evenly spread ones, those that hold most (relevance: none), and those chosen by a rule
that looks for the colour which the question names (`examples.shapes.relevance`).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bench.built_in import MAX_NEW_TOKENS, MODEL, SPEC
from bench.intervals import interval
from bench.pages import RESULTS, add_arguments, publish
from examples.shapes.evaluate_base import load, reply
from examples.shapes.make_videos import write_video
from examples.shapes.world import COLOURS, DIRECTIONS, SHAPES, Scene, make_scene, render, solve
from pipelines.summary import versions
from vidalign.prompts import PLAIN, fill
from vidalign.records import FrameChoice
from vidalign.types import FrameSpec
from vidalign.video import visuals
from vidalign.video.naming import asked_about

NUM_FRAMES, RUN, NUM_RUNS = 64, 4, 2
SECONDS, LONG_SECONDS = 2, 8  # of a video: as those that the model was trained on, and longer than any
SHOWN = SPEC.num_frames
RULE = "examples.shapes.relevance:colour_words"
EVEN, HELD, ASKED = "evenly spread", "by what frames hold", "by the question"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needle:
    """One video: the thing that is asked about, the frames that show it, and what the others show."""

    thing: Scene
    other: Scene | None
    at: tuple[int, ...]

    @property
    def question(self) -> str:
        return f"What shape is the {self.thing.things[0].colour} object?"

    @property
    def answer(self) -> str:
        return solve(self.thing, self.question)

    def frames(self) -> np.ndarray:
        """uint8 [64, H, W, 3]."""
        rest = self.other or dataclasses.replace(self.thing, things=())
        made = render(rest, ((np.arange(NUM_FRAMES) + 0.5) / NUM_FRAMES).tolist())
        count = len(self.at)
        made[list(self.at)] = render(self.thing, ((np.arange(count) + 0.5) / count).tolist())
        return made


def arms() -> dict[str, FrameSpec]:
    """How frames are taken, by name."""

    def choice(relevance: str) -> FrameSpec:
        assert SHOWN is not None
        return dataclasses.replace(SPEC, choice=FrameChoice(pool=NUM_FRAMES, keep=SHOWN, relevance=relevance))

    return {EVEN: SPEC, HELD: choice("none"), ASKED: choice(RULE)}


def needles(count: int, seed: int, *, crowded: bool, in_phase: bool) -> list[Needle]:
    """Videos with every shape equally often. `in_phase`: from the first run to the second it is a multiple of the distance between
    evenly spread frames, so that these meet both or none."""
    draw = np.random.default_rng([seed, crowded, in_phase])
    made = []
    for number in range(count):
        shape, colour = SHAPES[number % len(SHAPES)], str(draw.choice(COLOURS))
        thing = make_scene([(shape, colour, str(draw.choice(DIRECTIONS)))], draw)
        other = None
        if crowded:
            kind = (
                str(draw.choice([each for each in SHAPES if each != shape])),
                str(draw.choice([each for each in COLOURS if each != colour])),
                str(draw.choice(DIRECTIONS)),
            )
            other = dataclasses.replace(make_scene([kind], draw), background=thing.background)
        made.append(Needle(thing=thing, other=other, at=_places(draw, in_phase)))
    return made


def _places(draw: np.random.Generator, in_phase: bool) -> tuple[int, ...]:
    step = NUM_FRAMES // (SHOWN or 1)
    while True:
        first, second = sorted(int(at) for at in draw.integers(0, NUM_FRAMES - RUN + 1, NUM_RUNS))
        if second - first >= 2 * RUN and (not in_phase or (second - first) % step == 0):
            return tuple(range(first, first + RUN)) + tuple(range(second, second + RUN))


def measure(
    asked: Sequence[Needle], model: Any, processor: Any, folder: pathlib.Path, *, seconds: int = SECONDS
) -> dict[str, Any]:
    """What each arm shows of these videos, and how it answers: {arm: {"shown": frames of the thing, "right"}} as digits."""
    paths = [folder / f"{number:04d}.mp4" for number in range(len(asked))]
    for path, needle in zip(paths, asked, strict=True):
        write_video(path, needle.frames(), NUM_FRAMES // seconds)
    prompts = [fill(PLAIN, question=needle.question) for needle in asked]
    found = {}
    for name, spec in arms().items():
        by_question = spec.choice is not None and spec.choice.needs_question
        clips = [
            visuals.decode(asked_about(str(path), needle.question) if by_question else str(path), spec)
            for path, needle in zip(paths, asked, strict=True)
        ]
        assert {len(clip.indices) for clip in clips} == {SHOWN}, "every arm shows as many frames"
        metadata = [{k: v for k, v in clip.metadata().items() if k != "do_sample_frames"} for clip in clips]
        videos = [(clip.frames, each) for clip, each in zip(clips, metadata, strict=True)]
        replies = reply(model, processor, prompts, videos, max_new_tokens=MAX_NEW_TOKENS)
        found[name] = {
            "shown": digits(len(set(clip.indices) & set(needle.at)) for clip, needle in zip(clips, asked, strict=True)),
            "right": digits(text == needle.answer for text, needle in zip(replies, asked, strict=True)),
        }
    return found


def digits(values: Iterable[int]) -> str:
    """Numbers from 0 to 9 as one text, a digit for each video."""
    return "".join(str(int(value)) for value in values)


def numbers(text: str) -> np.ndarray:
    """What `digits` wrote."""
    return np.array([int(digit) for digit in text])


def figures(runs: Sequence[dict[str, Any]], arm: str) -> dict[str, Any]:
    """Of one arm over the seeds: shares in per cent, and the gain over evenly spread frames with its interval."""
    even = [100 * np.mean(numbers(run[EVEN]["right"])) for run in runs]
    right = [100 * np.mean(numbers(run[arm]["right"])) for run in runs]
    mean, half = interval([a - b for a, b in zip(right, even, strict=True)])
    return {
        "missed": float(np.mean([100 * np.mean(numbers(run[arm]["shown"]) == 0) for run in runs])),
        "shown": float(np.mean([np.mean(numbers(run[arm]["shown"])) for run in runs])),
        "right": float(np.mean(right)),
        "gain": mean,
        "half": half,
    }


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    rows = []
    for setting, runs in found["runs"].items():
        for arm in found["arms"]:
            made = figures(runs, arm)
            gain = "" if arm == EVEN else f"{made['gain']:+.1f} ± {made['half']:.1f}"
            rows.append(f"| {setting} | {arm} | {made['missed']:.1f} | {made['shown']:.2f} | {made['right']:.1f} | {gain} |")
    said = (
        f"Written by `vidalign bench needles`: {found['questions']} videos of {NUM_FRAMES} frames and {SECONDS} s in each of "
        f"{found['seeds']} seeds. In {RUN * NUM_RUNS} of the frames, {NUM_RUNS} runs of {RUN}, a thing crosses the picture, and the "
        "question names its colour and asks for its shape; the others show nothing, or another thing of another colour and shape. "
        f"{SHOWN} frames are shown to the built-in base, which answers greedily: evenly spread ones (`video.choice.kind: uniform`), "
        "those that hold most (`relevance: none`), or those chosen by a rule that looks for the colour which the question names "
        f"(`relevance: {RULE}`; pool {NUM_FRAMES}, keep {SHOWN}). *In phase*: the second run follows the first after a "
        "multiple of the distance between evenly spread frames, so that these meet both runs or neither; *anywhere*: the runs are "
        "drawn independently. *Missed* are videos of whose thing no frame is shown. The rule is made for this world: the table says "
        "what a choice is worth where relevance is known, not how well CLIP knows it. The videos of the last rows are longer than any "
        "that the base was trained on, and it reads their times wrongly whatever it is shown. ± is the 95 % interval over seeds."
    )
    head = "| in the other frames | frames shown | missed % | of the thing's 8 frames shown | right % | gain, points |"
    return "\n".join(["## Frames chosen by the question", "", said, "", head, "|---|---|---|---|---|---|", *rows, ""])


def settings() -> dict[str, dict[str, Any]]:
    """Where the thing is and what else there is, by name; the last also differs in how long a video is."""
    made: dict[str, dict[str, Any]] = {}
    for crowded in (False, True):
        for in_phase in (True, False):
            name = f"{'another thing' if crowded else 'nothing'}, {'in phase' if in_phase else 'anywhere'}"
            made[name] = {"crowded": crowded, "in_phase": in_phase, "seconds": SECONDS}
    return {
        **made,
        f"nothing, in phase, {LONG_SECONDS} s long": {"crowded": False, "in_phase": True, "seconds": LONG_SECONDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200, help="of each setting and seed")
    parser.add_argument("--seeds", type=int, default=3)
    add_arguments(parser, quick="20 questions of one seed")
    arguments = parser.parse_args()
    count, seeds = (20, 1) if arguments.quick else (arguments.questions, arguments.seeds)
    model, processor = load(pathlib.Path(MODEL.path))
    runs: dict[str, list[dict[str, Any]]] = {}
    for name, setting in settings().items():
        for seed in range(seeds):
            asked = needles(count, seed, crowded=setting["crowded"], in_phase=setting["in_phase"])
            with tempfile.TemporaryDirectory() as folder:
                made = measure(asked, model, processor, pathlib.Path(folder), seconds=setting["seconds"])
            runs.setdefault(name, []).append(made)
        print(name, {arm: figures(runs[name], arm) for arm in arms()}, flush=True)
    found = {"versions": versions(), "questions": count, "seeds": seeds, "arms": list(arms()), "runs": runs}
    publish(arguments, RESULTS, "needles", found, page(found))


if __name__ == "__main__":
    main()
