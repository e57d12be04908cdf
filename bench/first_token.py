"""The recipe with which `bench.start` notes when the first token comes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import ClassVar

from bench.marks import mark, read_marks
from vidalign.config.recipes import LeanpoRecipe
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.leanpo import Leanpo
from vidalign.types import Example, Response
from vidalign.video.scene import Shown


class FirstTokenSection(LeanpoRecipe):
    """The recipe leanpo that notes its marks in `folder`."""

    name: str = "bench.first_token:FirstTokenMarked"  # type: ignore[assignment]
    folder: str


class FirstTokenMarked(Leanpo):
    """Leanpo after one token whose time is noted."""

    Config: ClassVar[type[LeanpoRecipe]] = FirstTokenSection

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        assert isinstance(self.config, FirstTokenSection)
        folder = pathlib.Path(self.config.folder)
        if "token" not in read_marks(folder):
            mark(folder, "engine")
            request = Request(prompt="What moves?", clip=clips[0], seed=0, temperature=0.0, top_p=1.0, max_new_tokens=1)
            engine.generate([request])
            mark(folder, "token")
        return super().respond(engine, examples, clips, policy_version=policy_version, seed=seed)
