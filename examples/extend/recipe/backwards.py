"""A recipe of one's own: what the policy says of the video played backwards, against the ground truth.

    recipe: {name: "backwards:Backwards", num_candidates: 4, max_new_tokens: 24, max_trust: 0.5}

A recipe is a section of options and a class: `respond` asks the engine, `pair` makes a pair or says in a word why there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pydantic

from vidalign import prompts
from vidalign.config.recipe import SamplingSection
from vidalign.data.reading import DataRow
from vidalign.recipes.base import Evidence, Recipe
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.pairing import build_pair, side
from vidalign.recipes.sampling import Chunk, unsampled
from vidalign.types import Example, PreferencePair, Response
from vidalign.video.clip import Clip
from vidalign.video.scene import Shown, changed


class Section(SamplingSection):
    name: Literal["backwards:Backwards"]
    max_trust: float = pydantic.Field(0.5, ge=0, lt=1)  # replies that agree more with the ground truth are not rejected


class Backwards(Recipe[Section]):
    Config = Section

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        def backwards(clip: Clip) -> Clip:
            return dataclasses.replace(clip, frames=np.ascontiguousarray(clip.frames[::-1]))

        options, chunk = self.config, Chunk(engine, examples, clips, policy_version, seed, self.config.trust)
        fixed = options.model_dump(include={"temperature", "top_p", "max_new_tokens"})

        def ask(row: int, candidate: int) -> Request:
            prompt = prompts.fill(options.plain_prompt, question=examples[row].question)
            own_seed = chunk.request_seed(row, "perturbed", candidate)  # the same in any batch
            return Request(prompt=prompt, clip=changed(clips[row], backwards), seed=own_seed, **fixed)

        truths = [unsampled(each.id, "truth", each.answer, policy_version=policy_version) for each in examples]
        replies = chunk.sample("perturbed", options.num_candidates, ask)
        return chunk.score([*truths, *replies], options.plain_prompt)  # by the video as it is

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair | str:
        truth = next(each for each in responses if each.kind == "truth")
        if not (wrong := [r for r in responses if r.kind == "perturbed" and r.trust <= self.config.max_trust]):
            return "not_wrong"
        likeliest = max(wrong, key=lambda each: each.reward)
        return build_pair(row.example, side(truth), side(likeliest), recipe=self.config.name, rule="backwards")
