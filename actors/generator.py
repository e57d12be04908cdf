"""Ray Data actor that generates: examples with decoded clips in, scored responses out.

    chunk {examples, decoded} ─► Generator(engine) ─ respond(engine, examples, clips) ─► part file of Responses

The engine runs in the actor's process, where frames are read from the cache. What a recipe asks is a function passed to the
actor, so this file knows about engines but not about recipes.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib
import time
from typing import Any

from actors.engine import VllmEngine
from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.model.clip_check import ClipCheck, quarantined
from vidalign.recipes.engine import Respond
from vidalign.types import Example, Response
from vidalign.video.frame_cache import load_clip
from vidalign.video.scene import shown


class Generator:
    """Ray Data `map` callable: one row is one chunk of examples; its responses are on disk before it returns.

    A chunk is finished when its JSON file, which is written last, exists. The engine starts while the first videos are decoded, in
    the thread that then does all its work; the first chunk waits for it and raises its errors, so that they reach the driver.
    `engine_s` in that file says how long the chunk waited for the engine to start, how long the engine waited for the chunk (after
    the previous one), and how long it worked on it.
    """

    def __init__(
        self,
        model: dict[str, Any],
        path: str,
        num_gpus: int,
        seed: int,
        engine_args: dict[str, Any],
        respond: Respond,
        parts: str,
        limits: dict[str, int],
        reserved_tokens: int = 0,
    ) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        config = ModelConfig(**model)
        self._engine = self._thread.submit(
            VllmEngine, config, path, num_gpus=num_gpus, seed=seed, engine_args=engine_args, limits=limits
        )
        self._takes = self._thread.submit(
            ClipCheck,
            path,
            max_model_len=config.max_model_len,
            trust_remote_code=config.trust_remote_code,
            reserved_tokens=reserved_tokens,
        )
        self._respond = respond
        self._parts = pathlib.Path(parts)
        self._free_since: float | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Columns: chunk (int), and what `actors.decoder.ChunkDecoder` gives: examples and decoded (JSON lists of rows)."""
        began = time.monotonic()
        waited = 0.0 if self._free_since is None else began - self._free_since
        engine, takes = self._engine.result(), self._takes.result()
        started = time.monotonic()
        chunk, decoded = int(row["chunk"]), quarantined(json.loads(row["decoded"]), takes)
        frames = {video["video"]: video["frames_path"] for video in decoded if video["frames_path"]}
        asked = [Example.from_row(example) for example in json.loads(row["examples"])]
        examples = [example for example in asked if all(name in frames for name in example.context.visuals)]
        responses: list[Response] = []
        if examples:
            contexts = [example.context for example in examples]
            clips = [shown(context, tuple(load_clip(frames[name]) for name in context.visuals)) for context in contexts]
            responses = self._thread.submit(self._respond, engine, examples, clips).result()
        files.write_table(files.part_path(self._parts, chunk).with_suffix(".parquet"), responses)
        self._free_since = time.monotonic()
        seconds = {"waiting": waited, "starting": started - began, "working": self._free_since - started}
        files.write_json(
            files.part_path(self._parts, chunk),
            {"decoded": decoded, "num_responses": len(responses), "engine_s": {k: round(v, 3) for k, v in seconds.items()}},
        )
        return {"chunk": chunk, "num_examples": len(asked)}
