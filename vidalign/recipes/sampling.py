"""What recipes share: seeds, replies as records, and scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from vidalign import prompts
from vidalign.data.answers import trust
from vidalign.recipes.engine import Completion, Engine, Request
from vidalign.types import Example, Response, stable_hash
from vidalign.video.clip import Clip


def request_seed(seed: int, *parts: Any) -> int:
    """A sampling seed that depends on the run's seed and on what is sampled, never on batching or order."""
    return int(stable_hash([seed, *parts], 8), 16)


def sample(
    engine: Engine,
    examples: list[Example],
    kind: str,
    *,
    num_candidates: int,
    version: str,
    make: Callable[[int, int], Request],
) -> list[Response]:
    """One reply to `make(row, candidate)` for every example and candidate."""
    slots = [(row, candidate) for row in range(len(examples)) for candidate in range(num_candidates)]
    requests = [make(row, candidate) for row, candidate in slots]
    replies = engine.generate(requests)
    return [
        response(examples[row], kind, candidate, 0, reply, made, version)
        for (row, candidate), reply, made in zip(slots, replies, requests, strict=True)
    ]


def response(
    example: Example, kind: str, candidate: int, turn: int, reply: Completion, made: Request, version: str
) -> Response:
    """A reply as it is stored, not yet scored."""
    return Response(
        example_id=example.id,
        kind=kind,
        candidate=candidate,
        turn=turn,
        text=reply.text,
        token_ids=reply.token_ids,
        log_probs=reply.log_probs,
        policy_version=version,
        seed=made.seed,
        temperature=made.temperature,
        top_p=made.top_p,
        finish_reason=reply.finish_reason,
    )


def score(
    engine: Engine, examples: list[Example], clips: list[Clip], responses: list[Response], plain_prompt: str
) -> list[Response]:
    """Add reward and trust. Equal replies to one example are scored once; an empty reply keeps NaN as its reward."""
    row_of = {example.id: row for row, example in enumerate(examples)}
    distinct = sorted({(row_of[r.example_id], r.text.strip()) for r in responses if r.text.strip()})
    logps = engine.score(
        [(prompts.fill(plain_prompt, question=examples[row].question), clips[row], text) for row, text in distinct]
    )
    reward = {key: math.fsum(values) / len(values) for key, values in zip(distinct, logps, strict=True)}
    return [
        dataclasses.replace(
            r,
            reward=reward.get((row_of[r.example_id], r.text.strip()), math.nan),
            trust=trust(r.text, examples[row_of[r.example_id]]),
        )
        for r in responses
    ]
