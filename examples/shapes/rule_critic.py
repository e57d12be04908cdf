"""A critic that sees, for the built-in world: rules behind an OpenAI-compatible endpoint, in the place of recipe reagent's judge.

    python -m examples.shapes.rule_critic --rows data/shapes/train.jsonl --port 8101

    recipe: {name: reagent, judge: {kind: openai, model: rules, base_url: http://127.0.0.1:8101/v1, sees: video}}

It gets the video's file with each answer, finds the row whose video and question these are, and writes the five numbers by comparing
the answer with the row's. It is for machines on which no critic can run. Unlike a model, it never errs.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from examples.shapes.rule_judge import compare, run, serve
from vidalign.prompts import REPORT
from vidalign.recipes.critic import PARTS
from vidalign.types import Example

FORM = re.compile(r"[A-Z].*\.|\w+", re.DOTALL)  # a sentence, or the word that was to be chosen


def report(response: str, truth: str, question: str) -> str:
    """A critic's report: what an answer says counts for four of the numbers, its form for the fifth."""
    score, why = compare(response, truth, question)
    facts = {5: 5, 4: 5, 2: 2, 1: 0}[score]
    numbers = [facts] * 4 + [5 if FORM.fullmatch(response.strip()) else 0]
    lines = (f"{part.replace('_', ' ').capitalize()}: {number}" for part, number in zip(PARTS, numbers, strict=True))
    return "\n".join([f"The answer {why}.", *lines])


def critic(examples: Sequence[Example], template: str = REPORT) -> Callable[[Any], str]:
    """A function of a message with a video and a report's prompt that returns a report.

    Raises (the function does):
        ValueError: the prompt is not `template`, or no row has this video and question.
    """
    truths = {(_hash(pathlib.Path(example.video).read_bytes()), example.question): example.answer for example in examples}
    places = re.split(r"\{(question|previous)\}", template)
    form = "".join(f"(?P<{part}>.*)" if at % 2 else re.escape(part) for at, part in enumerate(places))

    def reply(content: Any) -> str:
        shown, prompt = _parts(content)
        asked = re.fullmatch(form, prompt, re.DOTALL)
        if asked is None:
            raise ValueError("this critic reads only the prompt that it was told; give it the recipe's report_prompt")
        truth = truths.get((_hash(shown), asked["question"]))
        if truth is None:
            raise ValueError(f"no row has this video and the question {asked['question']!r}")
        return report(asked["previous"], truth, asked["question"])

    return reply


def _parts(content: Any) -> tuple[bytes, str]:
    """The bytes of a message's one video, and its text."""
    kinds: Mapping[str, Any] = {part["type"]: part for part in content if isinstance(part, dict)}
    if kinds.keys() != {"video_url", "text"}:
        raise ValueError("this critic looks at one video; set judge.sees to video")
    return base64.b64decode(kinds["video_url"]["video_url"]["url"].partition(",")[2]), kinds["text"]["text"]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    from vidalign.data.reading import read_examples

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=pathlib.Path, required=True)
    parser.add_argument("--port", type=int, default=8101)
    arguments = parser.parse_args()
    run(serve(arguments.port, critic(read_examples(arguments.rows))))


if __name__ == "__main__":
    main()
