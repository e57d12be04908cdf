"""What stages read of a rollout, and what they record of the examples that it is of."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from vidalign import files
from vidalign.types import Example, Response, stable_hash


def digest(examples: Sequence[Example]) -> str:
    """The number of examples and a hash of all of them: what a manifest keeps of a data file."""
    return f"{len(examples)} examples, {stable_hash([example.to_row() for example in examples])}"


def media_limits(examples: Sequence[Example]) -> dict[str, int]:
    """How many videos and images a prompt of these examples has at most, as vLLM's limit_mm_per_prompt."""
    contexts = [example.context for example in examples]
    return {
        "video": max((len(context.videos) for context in contexts), default=1),
        "image": max((len(context.images) for context in contexts), default=0),
    }


def read_frames(folder: pathlib.Path) -> dict[str, str]:
    """{video uri: its clip in the frame cache} of a finished rollout."""
    return files.read_places(folder / "frames.json")


def read_responses(folder: pathlib.Path, *, tokens: bool = False) -> list[Response]:
    """Responses of a finished rollout without their tokens, which are most of them; with their ids where `tokens` is set."""
    return read_response_table(folder / "responses.parquet", tokens=tokens)


def read_response_table(path: pathlib.Path, *, tokens: bool = False) -> list[Response]:
    """The same of one table, such as a part of a rollout that goes on."""
    return files.read_table(path, Response, without=("log_probs",) if tokens else ("token_ids", "log_probs"))
