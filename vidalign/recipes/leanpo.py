"""LeanPO's data recipe (arXiv 2506.05260): hints and reflection for the chosen side, augmented videos for the rejected.

    turn 1   question + hint (the ground truth), clean video   ─► n "hinted" replies
    turn 2…K fresh prompt quoting the previous reply           ─► n "reflected" replies a turn
    losers   question alone, augmented video                   ─► n "augmented" replies        (negatives: augmented, both)
             a segment of the ground truth, said again         ─► n "replayed" replies         (negatives: replayed, both)
    score    every distinct reply, question alone, clean video ─► reward (average log-likelihood), and trust

Everything goes to one engine, so that the n candidates and the reflection turns share its prefix and vision caches.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vidalign import prompts
from vidalign.config.recipes import LeanpoRecipe
from vidalign.recipes import replay
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.sampling import request_seed, response, sample, score
from vidalign.types import Example, Response
from vidalign.video.clip import Clip


def respond(
    engine: Engine,
    examples: list[Example],
    clips: list[Clip],
    *,
    recipe: LeanpoRecipe,
    policy_version: str,
    seed: int,
) -> list[Response]:
    """Sample and score every candidate of both sides for these examples. Repeatable for equal arguments."""
    winners = _hinted_and_reflected(engine, examples, clips, recipe, policy_version, seed)
    losers: list[Response] = []
    if recipe.negatives != "replayed":
        losers += _augmented(engine, examples, clips, recipe, policy_version, seed)
    if recipe.negatives != "augmented":
        losers += _replayed(engine, examples, clips, recipe, policy_version, seed)
    return score(engine, examples, clips, [*winners, *losers], recipe.plain_prompt)


def _hinted_and_reflected(
    engine: Engine, examples: list[Example], clips: list[Clip], recipe: LeanpoRecipe, version: str, seed: int
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
        kind = "reflected" if turn else "hinted" if recipe.hints else "unhinted"
        requests = []
        for slot, (row, candidate) in enumerate(slots):
            example = examples[row]
            template = recipe.reflect_prompt if turn else recipe.hint_prompt if recipe.hints else recipe.plain_prompt
            text = prompts.fill(
                template, question=example.question, answer=example.answer, previous=previous[slot] if turn else ""
            )
            requests.append(request(text, clips[row], example.id, kind, candidate, turn))
        replies = engine.generate(requests)
        previous = [reply.text.strip() for reply in replies]
        for (row, candidate), reply, made in zip(slots, replies, requests, strict=True):
            responses.append(response(examples[row], kind, candidate, turn, reply, made, version))
    return responses


def _augmented(
    engine: Engine, examples: list[Example], clips: list[Clip], recipe: LeanpoRecipe, version: str, seed: int
) -> list[Response]:
    from vidalign.video.augment import augment  # with torchvision, which takes a second

    def request(row: int, candidate: int) -> Request:
        draw = request_seed(seed, examples[row].id, "augmented", candidate)
        return Request(
            prompt=prompts.fill(recipe.plain_prompt, question=examples[row].question),
            clip=augment(clips[row], recipe.augment, np.random.default_rng(draw)),
            seed=draw,
            temperature=recipe.temperature,
            top_p=recipe.rejected_top_p,
            max_new_tokens=recipe.max_new_tokens,
        )

    return sample(engine, examples, "augmented", num_candidates=recipe.num_candidates, version=version, make=request)


def _replayed(
    engine: Engine, examples: list[Example], clips: list[Clip], recipe: LeanpoRecipe, version: str, seed: int
) -> list[Response]:
    """Ground truths with one segment said again; token ids and log-probs are those of the new segment."""
    cuts: dict[int, replay.Cut] = {}

    def request(row: int, candidate: int) -> Request:
        made_with = request_seed(seed, examples[row].id, "replayed", candidate)
        parts = cuts[made_with] = replay.cut(examples[row].answer, np.random.default_rng(made_with))
        return Request(
            prompt=prompts.fill(recipe.plain_prompt, question=examples[row].question),
            clip=clips[row],
            seed=made_with,
            temperature=recipe.temperature,
            top_p=recipe.rejected_top_p,
            max_new_tokens=min(engine.num_tokens(parts.segment), recipe.replay_max_tokens),
            prefix=parts.before,
        )

    said = sample(engine, examples, "replayed", num_candidates=recipe.num_candidates, version=version, make=request)
    return [dataclasses.replace(r, text=cuts[r.seed].with_segment(r.text, ended=r.finish_reason == "stop")) for r in said]
