"""RRPO's data recipe (arXiv 2504.12083): the policy's own errors on a perturbed video, against the ground truth.

    perturbed    question alone, perturbed video                      ─► n replies
    score        question alone, clean video                          ─► reward, and trust; the likeliest wrong reply stays
    differences  question, truth and wrong reply (rewrite: policy)    ─► "right phrase => wrong phrase", one a line
    rewritten    truth with just those phrases swapped in             ─► the rejected response, parallel to the truth
    score        truth and rewrite                                    ─► rewards

The last three steps are greedy. Whether a rewrite differs in the listed phrases only is checked where pairs are made.
"""

from __future__ import annotations

import numpy as np

from vidalign import prompts
from vidalign.config.recipes import RrpoRecipe
from vidalign.recipes import phrases
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.pairing import likeliest_wrong, responses_by_example
from vidalign.recipes.sampling import request_seed, response, sample, score
from vidalign.types import Example, Response
from vidalign.video.clip import Clip
from vidalign.video.perturb import perturb


def respond(
    engine: Engine,
    examples: list[Example],
    clips: list[Clip],
    *,
    recipe: RrpoRecipe,
    policy_version: str,
    seed: int,
) -> list[Response]:
    """Sample and score the responses of this recipe for these examples. Repeatable for equal arguments."""

    def on_perturbed(row: int, candidate: int) -> Request:
        draw = request_seed(seed, examples[row].id, "perturbed", candidate)
        return Request(
            prompt=prompts.fill(recipe.plain_prompt, question=examples[row].question),
            clip=perturb(clips[row], recipe.perturb, np.random.default_rng(draw)),
            seed=draw,
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            max_new_tokens=recipe.max_new_tokens,
        )

    replies = sample(
        engine, examples, "perturbed", num_candidates=recipe.num_candidates, version=policy_version, make=on_perturbed
    )
    replies = score(engine, examples, clips, replies, recipe.plain_prompt)
    truths = [_truth(example, policy_version) for example in examples]
    rewrites: list[Response] = []
    if recipe.rewrite == "policy":
        rewrites = _rewrites(engine, examples, clips, replies, recipe, policy_version, seed)
    scored = score(
        engine,
        examples,
        clips,
        [*truths, *(r for r in rewrites if r.kind == "rewritten")],
        recipe.plain_prompt,
    )
    return [*replies, *scored, *(r for r in rewrites if r.kind != "rewritten")]


def _rewrites(
    engine: Engine,
    examples: list[Example],
    clips: list[Clip],
    replies: list[Response],
    recipe: RrpoRecipe,
    version: str,
    seed: int,
) -> list[Response]:
    by_example = responses_by_example(replies)
    wrong = [
        (row, found)
        for row, example in enumerate(examples)
        if (found := likeliest_wrong(by_example.get(example.id, []), recipe)) is not None
    ]
    listed = _ask(engine, examples, clips, wrong, "differences", recipe, version, seed)
    usable = [(row, r) for (row, _), r in zip(wrong, listed, strict=True) if phrases.parse_differences(r.text)]
    return [*listed, *_ask(engine, examples, clips, usable, "rewritten", recipe, version, seed)]


def _ask(
    engine: Engine,
    examples: list[Example],
    clips: list[Clip],
    about: list[tuple[int, Response]],
    kind: str,
    recipe: RrpoRecipe,
    version: str,
    seed: int,
) -> list[Response]:
    """One greedy reply about each (row, earlier response), which the prompt quotes."""
    template = recipe.differences_prompt if kind == "differences" else recipe.rewrite_prompt
    requests = [
        Request(
            prompt=prompts.fill(
                template, question=examples[row].question, answer=examples[row].answer, previous=earlier.text.strip()
            ),
            clip=clips[row],
            seed=request_seed(seed, examples[row].id, kind, earlier.candidate),
            temperature=0.0,
            top_p=1.0,
            max_new_tokens=recipe.max_new_tokens,
        )
        for row, earlier in about
    ]
    replies = engine.generate(requests) if requests else []
    return [
        response(examples[row], kind, earlier.candidate, 0, reply, made, version)
        for (row, earlier), reply, made in zip(about, replies, requests, strict=True)
    ]


def _truth(example: Example, version: str) -> Response:
    """The ground truth as a response nobody sampled, to be scored like the others."""
    return Response(
        example_id=example.id,
        kind="truth",
        candidate=0,
        turn=0,
        text=example.answer,
        token_ids=(),
        log_probs=(),
        policy_version=version,
        seed=0,
        temperature=0.0,
        top_p=1.0,
        finish_reason="",
    )
