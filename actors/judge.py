"""Judge: a model in vLLM, or behind any OpenAI-compatible endpoint, that scores responses or rewrites ground truths.

    rows ─► work(rows, judge, chat, name) ─► rows, on disk

What is asked and how replies are read are functions passed to the actor: `judging.py` and `rewriting.py` in vidalign/recipes. How
the model is talked to is in `actors/chats.py`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from actors.chats import open_chat
from vidalign import files
from vidalign.config.judging import JudgeConfig
from vidalign.model.folder import stage_model
from vidalign.recipes import judging
from vidalign.recipes.judging import Chat, Work
from vidalign.stored import here


class Judge:
    """Ray Data `map` callable: one row is one batch of the task's rows; what is made of them is on disk before it returns.

    `frames`: where the decoded clip of each video is, for a judge that sees them. `key`: the option that holds the config.
    `limits`: how many videos and images a prompt shows at most.
    """

    def __init__(
        self,
        config: dict[str, Any],
        parts: str,
        work: Work,
        frames: Mapping[str, str] | None = None,
        key: str = "recipe.judge",
        limits: Mapping[str, int] | None = None,
        model_path: str = "",
    ) -> None:
        """`model_path`: of a judge that is the policy, the run's `model.path`."""
        self._model_path = model_path
        self._config = JudgeConfig(**config)
        self._parts = pathlib.Path(here(parts))
        self._work = work
        self._frames = {name: here(path) for name, path in (frames or {}).items()}
        self._key = key
        self._limits = limits or {}
        self._chat: Chat | None = None
        self._name = ""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Columns: part (int), rows (JSON list of the task's rows)."""
        if self._chat is None:
            found = stage_model(self._model_path, self._config.model or "")
            self._config = self._config.model_copy(update={"model": found}) if found else self._config
            self._chat, model = open_chat(self._config, self._frames, self._limits, self._key)
            self._name = f"{self._config.kind}:{model}:{judging.prompt_version(self._config.prompt)}"
        rows = json.loads(row["rows"])
        made = self._work(rows, self._config, self._chat, self._name)
        files.write_json(files.part_path(self._parts, int(row["part"])), made)
        return {"judged": len(rows)}
