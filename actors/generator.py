"""Ray Data actor that generates: examples with decoded clips in, scored responses out.

    chunk {examples, decoded} ─► Generator(engine) ─ respond(engine, examples, clips) ─► part file of Responses

The engine runs in the actor's process, where frames are read from the cache. What a recipe asks is a function passed to the
actor, so this file knows about engines but not about recipes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from actors.answered import Answered
from actors.engine import VllmEngine
from actors.engine_starts import EngineStarts
from cluster.node_files import actor_id
from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.model.clip_check import ClipCheck, quarantined
from vidalign.model.folder import stage_model
from vidalign.recipes.engine import Respond
from vidalign.stored import here
from vidalign.types import Example, Response
from vidalign.video.frame_cache import load_clip
from vidalign.video.scene import Shown, scene_of, shown


class Generator:
    """Ray Data `map` callable: one row is one chunk of examples; its responses are on disk before it returns.

    A chunk is finished when its JSON file, which is written last, exists. The engine starts while the first videos are decoded; the
    first chunk waits for it and raises its errors, so that they reach the driver. Each example is answered by a thread of its
    own: its next turn is asked as soon as its own replies are there, and the examples of the next chunk, which is a call in another
    thread, start as others finish. `engine_s` in a chunk's file says how long it waited for the engine to start, and how long the
    engine waited for prompts and worked since a chunk was finished before.
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
        num_examples: int,
        limits: dict[str, int],
        reserved_tokens: int = 0,
    ) -> None:
        """`num_examples`: how many are answered at the same time; a chunk has as many."""
        config, path, parts = ModelConfig(**model), here(path), here(parts)
        starting = concurrent.futures.ThreadPoolExecutor(1)
        starts = EngineStarts(pathlib.Path(parts), actor_id())

        def engine() -> VllmEngine:
            stage_model(config.path, path)
            starts.begin()
            try:
                return VllmEngine(config, path, num_gpus=num_gpus, seed=seed, engine_args=engine_args, limits=limits)
            finally:
                starts.done()

        self._engine = starting.submit(engine)
        self._takes = starting.submit(
            ClipCheck,
            path,
            max_model_len=config.max_model_len,
            trust_remote_code=config.trust_remote_code,
            reserved_tokens=reserved_tokens,
        )
        self._respond = respond
        self._parts = pathlib.Path(parts)
        self._first = threading.Lock()
        self._answering = concurrent.futures.ThreadPoolExecutor(num_examples)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Columns: chunk (int), and what `actors.decoder.ChunkDecoder` gives: examples, decoded and missed (JSON lists of rows).

        A chunk of which a video is missed is handed back as it is.
        """
        if json.loads(row["missed"]):
            return {"chunk": int(row["chunk"]), "num_examples": 0, "missed": row["missed"]}
        starting = self._seconds_of_start()
        engine, takes = self._engine.result(), self._takes.result()
        rows = [{**video, "frames_path": here(video["frames_path"])} for video in json.loads(row["decoded"])]
        chunk, decoded = int(row["chunk"]), quarantined(rows, takes)
        frames = {video["video"]: video["frames_path"] for video in decoded if video["frames_path"]}
        asked = [Example.from_row(example) for example in json.loads(row["examples"])]
        examples = [example for example in asked if all(name in frames for name in example.context.visuals)]
        count = Answered(self._parts, chunk)
        answers = [
            self._answering.submit(self._respond, engine, [example], [shown_of(example, frames)]) for example in examples
        ]
        for answer in answers:
            answer.add_done_callback(count.one)
        try:
            responses = in_turns([answer.result() for answer in answers])
        finally:
            for answer in answers:
                answer.cancel()
            count.over()
        files.write_table(files.part_path(self._parts, chunk).with_suffix(".parquet"), responses)
        seconds = {"starting": starting, **engine.take_seconds()}
        path = files.part_path(self._parts, chunk)
        root = files.run_of(path)
        kept = [{**video, "frames_path": files.kept_place(root, video["frames_path"])} for video in decoded]
        files.write_json(
            path,
            {"decoded": kept, "num_responses": len(responses), "engine_s": {k: round(v, 3) for k, v in seconds.items()}},
        )
        return {"chunk": chunk, "num_examples": len(asked), "missed": row["missed"]}

    def _seconds_of_start(self) -> float:
        """Wait for the engine; how long, in the first call, and 0 in the others, which wait at the same time."""
        if not self._first.acquire(blocking=False):
            return 0.0
        began = time.monotonic()
        concurrent.futures.wait([self._engine])
        return time.monotonic() - began


def shown_of(example: Example, frames: Mapping[str, str]) -> Shown:
    """What an example shows, from the clips of its videos and images, and its other clip, if it has one that could be decoded."""
    scene = shown(example.context, tuple(load_clip(frames[name]) for name in example.context.visuals))
    if example.rejected_video not in frames:
        return scene
    return dataclasses.replace(scene_of(scene), other=load_clip(frames[example.rejected_video]))


def in_turns(answers: Sequence[Sequence[Response]]) -> list[Response]:
    """The responses of each example as if all had been asked together: by kind and turn, as they first occur, then by example."""
    flat = [(response, number) for number, answer in enumerate(answers) for response in answer]
    place: dict[tuple[str, int], int] = {}
    for response, _ in flat:
        place.setdefault((response.kind, response.turn), len(place))
    return [r for r, _ in sorted(flat, key=lambda row: (place[row[0].kind, row[0].turn], row[1]))]
