"""A judge for the events task that needs no language model, and errs as often as it is told to.

    python -m examples.events.rule_judge --port 8101 [--flips 0.25]     then recipe.judge: {kind: openai, model: rules, base_url: …/v1}

It reads the prompt `vidalign.prompts.JUDGE`, reads the events off the caption, and scores the answer's phrases: 5 for a right answer,
4 for nearly all phrases, 2 for half of them, else 1. `--flips` is the share of verdicts that are turned around (5 to 1, 4 to 2, and
back); which ones depends on the prompt and the seed alone, so that the same answer to the same question is judged the same again.
"""

from __future__ import annotations

import argparse
import functools
import re

from examples.events.phrases import as_events, retold
from examples.events.reading import read
from examples.events.scorers import phrase_f1
from examples.events.world import solve
from examples.shapes.rule_judge import asked, run, serve
from vidalign.prompts import BRIDGE, CONSISTENCY
from vidalign.types import Example, stable_hash


def _pattern_of(template: str) -> re.Pattern[str]:
    """What matches a prompt of this template, with a group for each of its fields."""
    return re.compile("(.*)".join(map(re.escape, re.split(r"\{\w+\}", template))), re.DOTALL)


_REASONED = _pattern_of(CONSISTENCY)
_TO_CORRECT = _pattern_of(BRIDGE)
GRADES = ((1.0, 5), (0.8, 4), (0.4, 2), (0.0, 1))  # (from this F1 on, score)


def judge(prompt: str, flips: float = 0.0, seed: int = 0) -> str:
    """The reply to a judge's prompt: an explanation and a score; no score where the caption or the answer is not understood.

    To `vidalign.prompts.CONSISTENCY` it replies with the answer that the reasoning leads to, and to `vidalign.prompts.BRIDGE` with the
    events of the right answer in the style of the wrong one.

    Raises:
        ValueError: the prompt is none of the three.
    """
    if (reasoned := _REASONED.fullmatch(prompt)) is not None:
        return concluded(*reasoned.groups())
    if (to_correct := _TO_CORRECT.fullmatch(prompt)) is not None:
        question, truth, wrong = to_correct.groups()
        return retold(truth, question, wrong) or wrong
    caption, question, response = asked(prompt)
    try:
        truth = solve(as_events(read(caption).events), question)
    except ValueError as error:
        return f"The caption does not answer the question: {error}."
    f1 = phrase_f1(response, Example(id="", video="", question=question, answer=truth, caption=caption))
    if f1 is None:
        return "The answer tells of no event that I understand."
    score = next(score for least, score in GRADES if f1 >= least)
    if flipped(prompt, flips, seed):
        score = 6 - score
    return f"By the caption the answer is {truth!r}.\nScore: {score}"


def concluded(question: str, reasoning: str) -> str:
    """The answer to a question by a list of events; an excuse where it is not understood."""
    try:
        return solve(as_events(read(reasoning).events), question)
    except ValueError as error:
        return f"I cannot tell: {error}."


def flipped(prompt: str, flips: float, seed: int) -> bool:
    """Whether the verdict on a prompt is turned around."""
    return int(stable_hash([seed, prompt], 8), 16) / 16**8 < flips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--flips", type=float, default=0.0, help="share of verdicts that are turned around, in [0, 1]")
    parser.add_argument("--seed", type=int, default=0, help="which verdicts these are")
    args = parser.parse_args()
    if not 0 <= args.flips <= 1:
        parser.error(f"--flips {args.flips:g} is a share of the verdicts; give a number in [0, 1]")
    run(serve(args.port, functools.partial(judge, flips=args.flips, seed=args.seed), "events"))


if __name__ == "__main__":
    main()
