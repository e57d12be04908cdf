"""What a recipe needs from an engine. `actors.engine` has the real one, in vLLM; a fake for tests takes twenty lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from vidalign.types import Example, Response
from vidalign.video.scene import Shown

SPECIAL_TOKEN = "special_token"  # finish reason of a reply in whose text special tokens were spelled out


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to sample a reply to. `prompt` is the user's text, before the chat template; `clip` is what the prompt shows.

    `prefix` is the beginning of the reply: it is continued, and it is not part of the completion.
    """

    prompt: str
    clip: Shown
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int
    prefix: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled reply. `log_probs` are the model's own, before temperature and top-p.

    `text` holds no special token: where a model spelled one out, it is left out, and `finish_reason` is `SPECIAL_TOKEN`.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str


class Engine(Protocol):
    """A policy that samples replies and says how likely given replies are."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Sample one reply to each request, in the order of `requests`."""
        ...

    def score(self, rows: Sequence[tuple[str, Shown, str]]) -> list[tuple[float, ...]]:
        """Log-probs (nats) of given replies, including their end-of-turn token, for rows (prompt, clip, reply)."""
        ...

    def num_tokens(self, text: str) -> int:
        """The number of tokens of a text alone, without any that a template adds."""
        ...


class Respond(Protocol):
    """What a recipe does with an engine: sample and score every response to a chunk of examples."""

    def __call__(self, engine: Engine, examples: list[Example], clips: list[Shown]) -> list[Response]: ...
