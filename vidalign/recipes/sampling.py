"""What recipes share: a chunk of examples for an engine, seeds, replies as `Response` records, and scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from vidalign import prompts
from vidalign.data.scorers import trust_by
from vidalign.recipes.engine import Completion, Engine, Request
from vidalign.types import Example, Response, stable_hash
from vidalign.video.scene import Shown


def request_seed(seed: int, *parts: Any) -> int:
    """A sampling seed that depends on the run's seed and on what is sampled, never on batching or order."""
    return int(stable_hash([seed, *parts], 8), 16)


def unsampled(
    example_id: str, kind: str, text: str, *, policy_version: str, candidate: int = 0, temperature: float = 0.0
) -> Response:
    """A text that no policy sampled (a ground truth, or what a judge wrote), as a response."""
    return Response(
        example_id=example_id,
        kind=kind,
        candidate=candidate,
        turn=0,
        text=text,
        token_ids=(),
        log_probs=(),
        policy_version=policy_version,
        seed=0,
        temperature=temperature,
        top_p=1.0,
        finish_reason="",
    )


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Examples with their clips, and the engine that answers them together; `trust`: the recipe's scorer of agreement."""

    engine: Engine
    examples: Sequence[Example]
    clips: Sequence[Shown]
    policy_version: str
    seed: int
    trust: str | None = None

    def request_seed(self, row: int, *parts: Any) -> int:
        """The sampling seed of one example's request, see `request_seed`."""
        return request_seed(self.seed, self.examples[row].id, *parts)

    def sample(self, kind: str, num_candidates: int, make: Callable[[int, int], Request]) -> list[Response]:
        """The reply to `make(row, candidate)` for every example and candidate, as responses that are not yet scored."""
        slots = [(row, candidate) for row in range(len(self.examples)) for candidate in range(num_candidates)]
        return self.ask(kind, [(row, candidate, make(row, candidate)) for row, candidate in slots])

    def ask(self, kind: str, asked: Sequence[tuple[int, int, Request]], turn: int = 0) -> list[Response]:
        """The reply to each (row, candidate, request), in order, as responses that are not yet scored."""
        replies = self.engine.generate([request for _, _, request in asked]) if asked else []
        return [
            self._response(kind, row, candidate, turn, reply, request)
            for (row, candidate, request), reply in zip(asked, replies, strict=True)
        ]

    def score(self, responses: Sequence[Response], plain_prompt: str) -> list[Response]:
        """Add reward and trust. Equal responses to an example are scored once; an empty response keeps NaN as its reward."""
        row_of = {example.id: row for row, example in enumerate(self.examples)}
        distinct = sorted({(row_of[r.example_id], r.text.strip()) for r in responses if r.text.strip()})
        logps = self.engine.score(
            [
                (prompts.fill(plain_prompt, question=self.examples[row].question), self.clips[row], text)
                for row, text in distinct
            ]
        )
        reward = {key: math.fsum(values) / len(values) for key, values in zip(distinct, logps, strict=True)}
        return [
            dataclasses.replace(
                r,
                reward=reward.get((row_of[r.example_id], r.text.strip()), math.nan),
                trust=trust_by(self.trust, r.text, self.examples[row_of[r.example_id]]),
            )
            for r in responses
        ]

    def _response(self, kind: str, row: int, candidate: int, turn: int, reply: Completion, made: Request) -> Response:
        return Response(
            example_id=self.examples[row].id,
            kind=kind,
            candidate=candidate,
            turn=turn,
            text=reply.text,
            token_ids=reply.token_ids,
            log_probs=reply.log_probs,
            policy_version=self.policy_version,
            seed=made.seed,
            temperature=made.temperature,
            top_p=made.top_p,
            finish_reason=reply.finish_reason,
        )
