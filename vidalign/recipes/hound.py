"""LLaVA-Hound's data recipe (arXiv 2404.01258): the policy's own samples, which a judge then scores against a caption.

plain    question alone, clean video            ─► n replies, their rewards and trust
caption  caption prompt, clean video, greedy    ─► one caption a video, where the data has none (captions: policy)
judge    caption, question, truth, reply        ─► score 1-5 and explanation (actors/judge.py, after all responses)
"""

from __future__ import annotations

from vidalign import prompts
from vidalign.config.recipes import HoundRecipe
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.sampling import request_seed, response, sample, score
from vidalign.types import Example, Response
from vidalign.video.clip import Clip


def respond(
    engine: Engine,
    examples: list[Example],
    clips: list[Clip],
    *,
    recipe: HoundRecipe,
    policy_version: str,
    seed: int,
) -> list[Response]:
    """Sample and score the replies to these examples, and caption their videos where asked to."""

    def plain(row: int, candidate: int) -> Request:
        return Request(
            prompt=prompts.fill(recipe.plain_prompt, question=examples[row].question),
            clip=clips[row],
            seed=request_seed(seed, examples[row].id, "plain", candidate),
            temperature=recipe.temperature,
            top_p=recipe.top_p,
            max_new_tokens=recipe.max_new_tokens,
        )

    replies = sample(engine, examples, "plain", num_candidates=recipe.num_candidates, version=policy_version, make=plain)
    replies = score(engine, examples, clips, replies, recipe.plain_prompt)
    return [*replies, *_captions(engine, examples, clips, recipe, policy_version, seed)]


def _captions(
    engine: Engine, examples: list[Example], clips: list[Clip], recipe: HoundRecipe, version: str, seed: int
) -> list[Response]:
    if recipe.captions != "policy":
        return []
    requests = [
        Request(
            prompt=recipe.caption_prompt,
            clip=clip,
            seed=request_seed(seed, example.video, "caption"),
            temperature=0.0,
            top_p=1.0,
            max_new_tokens=recipe.max_new_tokens,
        )
        for example, clip in zip(examples, clips, strict=True)
    ]
    return [
        response(example, "caption", 0, 0, reply, made, version)
        for example, reply, made in zip(examples, engine.generate(requests), requests, strict=True)
    ]
