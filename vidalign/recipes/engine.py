"""What a recipe asks of an engine. `actors.engine` is the real one, in vLLM; a test's fake takes twenty lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from vidalign.types import Example, Response
from vidalign.video.clip import Clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to sample a reply to. `prompt` is the user's text, before the chat template.

    `prefix` is how the reply begins: it is continued and is not part of the completion.
    """

    prompt: str
    clip: Clip
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int
    prefix: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled reply. `log_probs` are the model's own, before temperature and top-p."""

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str


class Engine(Protocol):
    """A policy that samples replies, and says how likely given ones are."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample one reply to every request; the result is in the order of `requests`."""
        ...

    def score(self, rows: Sequence[tuple[str, Clip, str]]) -> list[tuple[float, ...]]:
        """Log-probs (nats) of given replies, their end-of-turn token included, for rows (prompt, clip, reply)."""
        ...

    def num_tokens(self, text: str) -> int:
        """Tokens of a text by itself, without any that a template adds."""
        ...


class Respond(Protocol):
    """What a recipe does with an engine: sample and score every response to a chunk of examples."""

    def __call__(self, engine: Engine, examples: list[Example], clips: list[Clip]) -> list[Response]: ...
