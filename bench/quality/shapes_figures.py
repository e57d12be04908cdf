"""What is measured of a model of the shapes task: accuracy, hallucination, and how far it is from the base.

The measurements are taken through the Hugging Face model, which answers like the served one (tests/test_engine.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bench.quality.answers import replies
from bench.quality.data import Data
from vidalign import prompts
from vidalign.config.degrading import PerturbConfig
from vidalign.data.answers import is_correct
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.sequences import truth_group
from vidalign.model.batch import IGNORED
from vidalign.model.logps import forward_kl, pad_to_mask
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import load_processor
from vidalign.types import Example, stable_hash
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import load_clip
from vidalign.video.perturb import perturb

PERTURB = PerturbConfig()
NUM_KL = 300  # held-out questions on whose base answers the divergence from the base is measured
BATCH = 32


@torch.inference_mode()
def measure(data: Data, path: str, split: str) -> dict[str, Any]:
    """Accuracy on a split; on "heldout" also on perturbed videos, hallucination, and the divergence from the base."""
    examples = data.examples(split)
    processor, model = load_processor(path), load_policy(data.task.model, path).eval()
    clips = [load_clip(data.frames[example.video]) for example in examples]
    correct = answer(model, processor, examples, clips)
    figures: dict[str, Any] = {"accuracy": float(np.mean(correct)), "by_category": by_category(examples, correct)}
    if split != "heldout":
        return figures
    absent = [not right for example, right in zip(examples, correct, strict=True) if is_absent(example)]
    spoiled = [spoil(example, clip) for example, clip in zip(examples, clips, strict=True)]
    on_spoiled = answer(model, processor, examples, spoiled)
    absent_spoiled = [not right for example, right in zip(examples, on_spoiled, strict=True) if is_absent(example)]
    return figures | {
        "hallucination": float(np.mean(absent)),
        "perturbed_accuracy": float(np.mean(on_spoiled)),
        "perturbed_hallucination": float(np.mean(absent_spoiled)),
        **divergence(data, model, processor),
    }


def answer(model: Any, processor: Any, examples: Sequence[Example], clips: Sequence[Clip]) -> list[bool]:
    """Whether each greedy answer is correct."""
    texts = replies(model, processor, examples, clips)
    return [is_correct(text, example) for text, example in zip(texts, examples, strict=True)]


def by_category(examples: Sequence[Example], correct: Sequence[bool]) -> dict[str, float]:
    names = sorted({example.category for example in examples})
    return {
        name: float(np.mean([right for example, right in zip(examples, correct, strict=True) if example.category == name]))
        for name in names
    }


def is_absent(example: Example) -> bool:
    """A question on an object that is not there: every wrong answer claims that it is, or is no answer."""
    return example.category == "presence" and example.answer.startswith("No")


def spoil(example: Example, clip: Clip) -> Clip:
    """The example's perturbed video, the same for every run."""
    return perturb(clip, PERTURB, np.random.default_rng(int(stable_hash(["perturbed", example.id], 8), 16)))


def divergence(data: Data, model: Any, processor: Any) -> dict[str, float]:
    """KL(base || model) in nats, full vocabulary, summed over the tokens of the base's own greedy answer.

    `kl_to_base` is the mean over all questions, `kl_where_right` over those that the base answers correctly: there, nothing has
    to change.
    """
    examples = data.examples("heldout")[:NUM_KL]
    config = data.task.model
    base = load_policy(config, config.path).eval()
    clips = [load_clip(data.frames[example.video]) for example in examples]
    texts = replies(base, processor, examples, clips)
    answered = [dataclasses.replace(example, answer=text or ".") for example, text in zip(examples, texts, strict=True)]
    source = BatchSource(
        frames=data.frames, processor=processor, plain_prompt=prompts.PLAIN, max_model_len=config.max_model_len
    )
    ours, theirs = ResponseScorer(model), ResponseScorer(base)
    sums: list[float] = []
    for start in range(0, len(answered), BATCH):
        batch = source.batch([truth_group(example) for example in answered[start : start + BATCH]])
        mask = batch.labels != IGNORED
        kl = forward_kl(
            ours.hidden(batch.inputs, batch.labels),
            theirs.hidden(batch.inputs, batch.labels),
            model.get_output_embeddings(),
            base.get_output_embeddings(),
        )
        sums += pad_to_mask(kl, mask).sum(-1).tolist()
    right = [is_correct(text, example) for text, example in zip(texts, examples, strict=True)]
    return {
        "kl_to_base": float(np.mean(sums)),
        "kl_where_right": float(np.mean([value for value, known in zip(sums, right, strict=True) if known])),
    }
