"""Greedy answers of a model to plain questions, through the Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from examples.shapes.evaluate_base import reply
from vidalign import prompts
from vidalign.types import Example
from vidalign.video.clip import Clip


def replies(
    model: Any, processor: Any, examples: Sequence[Example], clips: Sequence[Clip], max_new_tokens: int = 32
) -> list[str]:
    """The model's greedy answer to each example's question about its clip."""
    asked = [prompts.fill(prompts.PLAIN, question=example.question) for example in examples]
    shown = [(clip.frames, {k: v for k, v in clip.metadata().items() if k != "do_sample_frames"}) for clip in clips]
    return reply(model, processor, asked, shown, max_new_tokens=max_new_tokens)
