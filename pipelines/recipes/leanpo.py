"""LeanPO's data recipe (arXiv 2506.05260): hints and reflection for the chosen side, augmented videos for the rejected.

    turn 1   question + hint (the ground truth), clean video   ─► n "hinted" replies
    turn 2…K fresh prompt quoting the previous reply           ─► n "reflected" replies a turn
    losers   question alone, augmented video                   ─► n "augmented" replies
    score    every distinct reply, question alone, clean video ─► reward (average log-likelihood), and trust

Everything goes to one engine, so that the n candidates and the reflection turns share its prefix and vision caches.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from actors.generator import Completion, Engine, Request
from vidalign import prompts, scoring
from vidalign.augment import augment
from vidalign.config import RecipeConfig
from vidalign.types import Example, Response, stable_hash
from vidalign.video import Clip


def respond(
    engine: Engine,
    examples: list[Example],
    clips: list[Clip],
    *,
    recipe: RecipeConfig,
    policy_version: str,
    seed: int,
) -> list[Response]:
    """Sample and score every candidate of both sides for these examples. Repeatable for equal arguments."""
    winners = _hinted_and_reflected(engine, examples, clips, recipe, policy_version, seed)
    losers = _augmented(engine, examples, clips, recipe, policy_version, seed)
    return _score(engine, examples, clips, [*winners, *losers], recipe)


def request_seed(seed: int, *parts: Any) -> int:
    """A sampling seed that depends on the run's seed and on what is sampled, never on batching or order."""
    return int(stable_hash([seed, *parts], 8), 16)


def trust(text: str, example: Example) -> float:
    """Agreement with the ground truth in [0, 1]: 1 for what evaluation counts as correct, else the share of common words."""
    return 1.0 if scoring.is_correct(text, example) else scoring.agreement(text, example.answer)


def _hinted_and_reflected(
    engine: Engine, examples: list[Example], clips: list[Clip], recipe: RecipeConfig, version: str, seed: int
) -> list[Response]:
    def request(prompt: str, clip: Clip, *seed_parts: Any) -> Request:
        return Request(
            prompt=prompt,
            clip=clip,
            seed=request_seed(seed, *seed_parts),
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            max_new_tokens=recipe.max_new_tokens,
        )

    slots = [(row, candidate) for row in range(len(examples)) for candidate in range(recipe.num_candidates)]
    responses: list[Response] = []
    previous: list[str] = []
    for turn in range(recipe.num_turns):
        kind = "hinted" if turn == 0 else "reflected"
        requests = []
        for slot, (row, candidate) in enumerate(slots):
            example = examples[row]
            template = recipe.hint_prompt if turn == 0 else recipe.reflect_prompt
            text = prompts.fill(
                template, question=example.question, answer=example.answer, previous=previous[slot] if turn else ""
            )
            requests.append(request(text, clips[row], example.id, kind, candidate, turn))
        replies = [completions[0] for completions in engine.generate(requests)]
        previous = [reply.text.strip() for reply in replies]
        for (row, candidate), reply, made in zip(slots, replies, requests, strict=True):
            responses.append(_response(examples[row], kind, candidate, turn, reply, made, version))
    return responses


def _augmented(
    engine: Engine, examples: list[Example], clips: list[Clip], recipe: RecipeConfig, version: str, seed: int
) -> list[Response]:
    slots = [(row, candidate) for row in range(len(examples)) for candidate in range(recipe.num_candidates)]
    requests = []
    for row, candidate in slots:
        example = examples[row]
        draw = request_seed(seed, example.id, "augmented", candidate)
        requests.append(
            Request(
                prompt=prompts.fill(recipe.plain_prompt, question=example.question),
                clip=augment(clips[row], recipe.augment, np.random.default_rng(draw)),
                seed=draw,
                temperature=recipe.temperature,
                top_p=recipe.rejected_top_p,
                max_new_tokens=recipe.max_new_tokens,
            )
        )
    replies = [completions[0] for completions in engine.generate(requests)]
    return [
        _response(examples[row], "augmented", candidate, 0, reply, made, version)
        for (row, candidate), reply, made in zip(slots, replies, requests, strict=True)
    ]


def _response(
    example: Example, kind: str, candidate: int, turn: int, reply: Completion, made: Request, version: str
) -> Response:
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


def _score(
    engine: Engine, examples: list[Example], clips: list[Clip], responses: list[Response], recipe: RecipeConfig
) -> list[Response]:
    """Add reward and trust. Equal replies to one example are scored once; an empty reply keeps NaN as its reward."""
    row_of = {example.id: row for row, example in enumerate(examples)}
    distinct = sorted({(row_of[r.example_id], r.text.strip()) for r in responses if r.text.strip()})
    logps = engine.score(
        [(prompts.fill(recipe.plain_prompt, question=examples[row].question), clips[row], text) for row, text in distinct]
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
