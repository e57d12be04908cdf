"""What is measured of a model of the events task: its greedy answers by phrase, against what happened."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from bench.quality.answers import replies
from bench.quality.data import Data
from examples.events.phrases import as_events
from examples.events.reading import read
from examples.events.scorers import phrase_f1
from examples.events.train_base import MAX_NEW_TOKENS
from examples.events.world import solve
from vidalign.model.policy import load_policy
from vidalign.model.rendering import load_processor
from vidalign.types import Example
from vidalign.video.frame_cache import load_clip

VERBS = ("moves", "goes", "heading")  # of the styles of `examples.events.world`, in their order


@torch.inference_mode()
def measure(data: Data, path: str, split: str) -> dict[str, Any]:
    """The figures of the greedy answers to a split, and the answers."""
    examples = data.examples(split)
    processor, model = load_processor(path), load_policy(data.task.model, path).eval()
    clips = [load_clip(data.frames[example.video]) for example in examples]
    texts = replies(model, processor, examples, clips, MAX_NEW_TOKENS)
    return {**figures(texts, examples), "num_questions": len(examples), "replies": texts}


def figures(texts: Sequence[str], examples: Sequence[Example]) -> dict[str, Any]:
    """Those of `examples.events.scorers`, against what the captions tell; `right`: answers without an error or an omission."""
    true = [with_true_answer(example) for example in examples]
    by_category = {}
    for category in sorted({example.category for example in true}):
        places = [place for place, example in enumerate(true) if example.category == category]
        by_category[category] = phrase_f1.measure([texts[p] for p in places], [true[p] for p in places])["f1"]
    right = [score == 1.0 for score in scores(texts, examples)]
    return {**phrase_f1.measure(texts, true), "right": sum(right) / len(right), "f1_by_category": by_category}


def scores(texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """The phrase F1 of each answer, against what the captions tell; 0 for what is not understood."""
    return [phrase_f1(text, with_true_answer(row)) or 0.0 for text, row in zip(texts, examples, strict=True)]


def with_true_answer(example: Example) -> Example:
    """A row with the answer that its caption gives: that of a training row is an imperfect hint."""
    return dataclasses.replace(example, answer=solve(as_events(read(example.caption).events), example.question))


def styles(texts: Sequence[str]) -> dict[str, float]:
    """The share of answers in each style, by its verb; conclusions have "move" in all of them, so that it is looked for last."""
    found = [next((verb for verb in reversed(VERBS) if verb in text.split()), "") for text in texts]
    return {verb: round(found.count(verb) / len(found), 4) for verb in VERBS}
