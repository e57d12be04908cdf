"""The part of the recipe leanpo that `bench.rollout` compares, and its prompts as others have to write them."""

from __future__ import annotations

from collections.abc import Sequence

from bench.built_in import MAX_NEW_TOKENS
from vidalign import prompts
from vidalign.config.recipes import LeanpoRecipe
from vidalign.recipes.engine import Engine
from vidalign.recipes.leanpo import Leanpo
from vidalign.recipes.sampling import Chunk
from vidalign.types import Example, Response
from vidalign.video.scene import Shown

TEMPERATURE, TOP_P = 1.0, 0.9


class Winners(Leanpo):
    """Hinted candidates and their reflection, not scored; without the rejected side."""

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        return self.winners(Chunk(engine, examples, clips, policy_version, seed))


def winners(num_candidates: int) -> Winners:
    """The recipe with one turn of reflection."""
    return Winners(
        LeanpoRecipe(
            num_candidates=num_candidates,
            num_turns=2,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=TEMPERATURE,
            top_p=TOP_P,
        )
    )


def hint(example: Example) -> str:
    """The prompt of the first turn."""
    return prompts.fill(prompts.HINT, question=example.question, answer=example.answer)


def reflect(example: Example, previous: str) -> str:
    """The prompt of the second turn, which quotes the reply of the first."""
    return prompts.fill(prompts.REFLECT, question=example.question, answer=example.answer, previous=previous.strip())
