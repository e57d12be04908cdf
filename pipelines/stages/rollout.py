"""Rollout: examples ─► decoded frames ─► responses, as one Ray Data stream.

    examples in chunks ─► Decoder pool (CPU) ─► Generator pool (vLLM) ─► part files ─► responses, quarantine

Decoding of later chunks overlaps generation of earlier ones. A chunk whose part is on disk is not made again, and chunks do
not depend on each other, so a run that was killed continues to the same responses. The driver holds ids, texts and paths.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from actors import answered
from actors.decoder import ChunkDecoder, decoded_videos
from actors.engine_starts import EngineStarts
from actors.generator import Generator
from actors.pools import pool
from cluster.engines import with_float32_head
from cluster.node_files import Missed, Passes
from cluster.resources import Workers
from pipelines import progress
from pipelines.moved import Moved
from pipelines.stages.base import Stage
from pipelines.stages.decoded import Decoded, count_videos, note_left_out, sorted_out
from pipelines.stages.filling import ASKED, fill, giving, shortfall
from pipelines.stages.groups import special_ids
from pipelines.stages.lookalikes import lookalike_warning
from pipelines.stages.responses import digest, media_limits
from vidalign import files, mirror
from vidalign.config.run import ModelConfig, RolloutConfig, VideoConfig
from vidalign.recipes.base import Recipe
from vidalign.types import Example, PolicyVersion
from vidalign.video.relevance import decided_by


@dataclasses.dataclass(kw_only=True)
class Rollout(Stage):
    """The responses of one round, and the decoded videos of its training and probe examples.

    `cache`: the frame cache. `seed`: of the round; `engine_seed`: of the run. `text_tokens`: what the context must have beside a
    video; a video that leaves less is quarantined. `missing`: names of videos that the driver does not find. `places`: of the
    examples in the order of all prompts, where a round does not ask all (`pipelines.stages.filling`). `policy_round`: the one that
    starts from `policy`. `data`: where it is, and was.
    """

    name: ClassVar[str] = "rollout"

    folder: pathlib.Path
    quarantine: pathlib.Path
    cache: pathlib.Path
    round_index: int
    model: ModelConfig
    video: VideoConfig
    rollout: RolloutConfig
    recipe: Recipe[Any]
    policy: PolicyVersion
    train: Sequence[Example]
    probe: Sequence[Example]
    decoders: Workers
    engines: Workers
    engine_seed: int
    float32_head: bool = False
    text_tokens: int = 0
    missing: Sequence[str] = ()
    places: Sequence[int] | None = None
    policy_round: int | None = None
    data: Moved = dataclasses.field(default_factory=Moved)
    earlier: Callable[[], Stage | None] | None = None

    @property
    def seed(self) -> int:
        return self.engine_seed + self.round_index

    def inputs(self) -> dict[str, Any]:
        recipe = self.recipe.config
        return {
            "policy": self.policy.version,
            "seed": self.engine_seed,
            "model": {name: value for name, value in self.model.deciding().items() if name != "path"},
            "video": self.video.frame_spec().to_row(),
            "recipe": {n: v for n, v in recipe.deciding().items() if self.recipe.refills or n not in recipe.PAIRING},
            "data.train": digest(self.train),
            "data.probe": digest(self.probe),
            **({"train.float32_head": True} if self.float32_head else {}),
            **decided_by(self.video.frame_spec()),
        }

    def elsewhere(self) -> Iterator[Rollout]:
        former = zip(self.data.examples("train", self.train), self.data.examples("probe", self.probe), strict=True)
        return (dataclasses.replace(self, train=train, probe=probe) for train, probe in former)

    def layout(self) -> dict[str, Any]:
        return {"rollout.batch_size": self.rollout.batch_size}

    def inputs_v1(self) -> dict[str, Any]:
        recipe = self.recipe.config
        return {
            "policy": self.policy.version,
            "seed": self.engine_seed,
            "model": self.model.recorded(exclude={"path"}),
            "video": self.video.frame_spec().to_row(),
            "recipe": recipe.recorded(exclude=set(recipe.PAIRING | recipe.NEUTRAL)),
            "examples": [example.to_row() for example in [*self.train, *self.probe]],
            "chunk": self.rollout.batch_size,
        }

    def run(self) -> dict[str, Any]:
        """Write responses.parquet, frames.json, probe.parquet, videos.json and the quarantine."""
        engine_s: dict[str, float] = {}
        decoded: dict[str, Mapping[str, str]] = {}
        if self.recipe.asks_policy:
            decoded, engine_s = self._collect(self.generate())
        else:
            decoded |= self._decode(self.train, f"decode, round {self.round_index}")
            files.write_table(self.folder / "responses.parquet", [])
        decoded |= self._decode(self.probe)
        self._write(decoded)
        return {"policy": self.policy.version, "policy_round": self.policy_round, "engine_s": engine_s}

    def _chunks(self, asked: int) -> list[tuple[int, Sequence[Example]]]:
        size = self.rollout.batch_size
        return list(enumerate(self.train[start : start + size] for start in range(0, asked, size)))

    def generate(self) -> int:
        """Make the parts of all chunks, or of as many as fill the round; needs Ray. Returns how many of the examples count."""
        wanted, total = self.recipe.num_prompts, len(self.train)
        if wanted is None or not self.recipe.refills:
            self._generate(total)
            return total
        special = special_ids(self.policy.path, trust_remote_code=self.model.trust_remote_code)
        given: list[list[bool]] = []

        def found(asked: int) -> list[bool]:
            for index, chunk in self._chunks(asked)[len(given) :]:
                given.append(giving(files.part_path(self.folder / "parts", index), chunk, self.recipe, special))
            return [each for chunk in given for each in chunk]

        asked = fill(wanted, total, self.rollout.batch_size, ask=self._generate, found=found)
        if (warning := shortfall(sum(found(asked)), wanted, asked)) is not None:
            progress.warn(warning)
        return asked

    def _generate(self, asked: int) -> None:
        """Decode, respond, and write the part files of the chunks of the first `asked` examples that have none that are whole yet."""
        parts, passes = self.folder / "parts", Passes(self.missing)
        EngineStarts.forget(parts)
        answered.forget(parts)
        chunks = self._chunks(asked)
        todo = [each for each in chunks if not files.is_part_whole(parts, each[0], has_table=True)]
        count = sum(len(chunk) for _, chunk in chunks)
        begun = done = count - sum(len(chunk) for _, chunk in todo)
        with progress.bar(f"rollout, round {self.round_index}", count, "example", initial=begun) as shown:

            def look() -> None:  # finer than chunks
                number = max(shown.n, done + answered.num_answered(parts))
                shown.show(number, "waiting for the engine and the first videos" if number == begun else "")

            while todo:
                missed: dict[int, list[Missed]] = {}
                with progress.looked_at(look):
                    for row in self._stream(todo, parts, passes).iter_rows():
                        done += int(row["num_examples"])
                        if found := json.loads(row["missed"]):
                            missed[int(row["chunk"])] = [Missed.from_row(miss) for miss in found]
                passes.again([miss for found in missed.values() for miss in found])
                todo = [(index, chunk) for index, chunk in todo if index in missed]
        mirror.refresh(parts)  # of a run in a store: those that other nodes made

    def _stream(self, todo: Sequence[tuple[int, Sequence[Example]]], parts: pathlib.Path, passes: Passes) -> Any:
        """A Ray Data set with one row for each chunk, {chunk, num_examples, missed}; its part is on disk before its row comes, unless
        something is missed of it.

        A chunk is one row all the way: batches would have to be of one size, and Ray Data joins blocks to fill them.
        """
        import pandas as pd
        import ray.data

        ray.data.DataContext.get_current().execution_options.preserve_order = True
        blocks = [
            pd.DataFrame({"chunk": [index], "examples": [json.dumps([example.to_row() for example in chunk])]})
            for index, chunk in todo
        ]
        decoder = {
            "spec": self.video.frame_spec(),
            "cache_dir": str(self.cache),
            "backend": self.video.backend,
            "deadline_s": self.video.deadline_s,
            "gone": passes.gone,
        }
        generator = {
            "model": self.model.model_dump(mode="json"),
            "path": self.policy.path,
            "num_gpus": int(self.engines.gpus),
            "seed": self.engine_seed,
            "engine_args": with_float32_head(self.rollout.engine_args)
            if self.float32_head
            else dict(self.rollout.engine_args),
            "respond": functools.partial(self.recipe.respond, policy_version=self.policy.version, seed=self.seed),
            "parts": str(parts),
            "num_examples": self.rollout.batch_size,
            "reserved_tokens": self.text_tokens,
            "limits": media_limits(self.train),
        }
        return (
            ray.data.from_blocks(blocks)
            .map(
                ChunkDecoder,
                fn_constructor_kwargs=decoder,
                compute=pool(self.decoders.num, len(todo), self.decoders.fewest),
                num_cpus=self.decoders.cpus,
                **passes.placement(),
            )
            .map(
                Generator,
                fn_constructor_kwargs=generator,
                # Two chunks at a time, so that an engine does not wait for the last replies of one.
                compute=pool(self.engines.num, len(todo), self.engines.fewest, at_once=2),
                num_cpus=self.engines.cpus,
                num_gpus=self.engines.gpus,
            )
        )

    def _collect(self, asked: int) -> tuple[dict[str, Mapping[str, str]], dict[str, float]]:
        """Write the responses to the first `asked` examples as one table, and which these are where a round takes the next ones.

        Returns how each video decoded, and the engines' seconds of starting, waiting and working.
        """
        paths = [files.part_path(self.folder / "parts", index) for index, _ in self._chunks(asked)]
        root = files.run_of(paths[0]) if paths else self.folder
        names, tables = [example.id for example in self.train[:asked]], [path.with_suffix(".parquet") for path in paths]
        only = ("example_id", names) if asked < len(self.train) else None
        files.join_tables(tables, self.folder / "responses.parquet", only=only)
        if self.places is not None:
            files.write_json(self.folder / ASKED, {"examples": names, "next": self.places[asked - 1] + 1})
        decoded: dict[str, Mapping[str, str]] = {}
        engine_s: collections.Counter[str] = collections.Counter()
        renamed = self.data.renamed("train", self.train)
        for path in paths:
            part = files.read_json(path)
            clips = files.found_places(root, {row["video"]: row["frames_path"] for row in part["decoded"]})
            for row in part["decoded"]:
                name = renamed.get(row["video"], row["video"])
                decoded[name] = {**row, "video": name, "frames_path": clips[row["video"]]}
            engine_s.update(part.get("engine_s", {}))
        return decoded, {name: round(seconds, 2) for name, seconds in engine_s.items()}

    def _decode(self, examples: Sequence[Example], label: str = "") -> dict[str, Mapping[str, str]]:
        """Decode the videos of examples that no engine responds to."""
        if not examples:
            return {}
        videos = list(dict.fromkeys(name for example in examples for name in example.decoded))
        rows = decoded_videos(
            videos,
            self.video.frame_spec(),
            str(self.cache),
            backend=self.video.backend,
            deadline_s=self.video.deadline_s,
            num_decoders=self.decoders.num,
            fewest_decoders=self.decoders.fewest,
            num_cpus=self.decoders.cpus,
            gone=self.missing,
        )
        from vidalign.model.clip_check import ClipCheck, quarantined

        takes = ClipCheck(
            self.policy.path,
            max_model_len=self.model.max_model_len,
            trust_remote_code=self.model.trust_remote_code,
            reserved_tokens=self.text_tokens,
        )
        decoded: dict[str, Mapping[str, str]] = {}
        with progress.bar(label, len(videos), "video") if label else contextlib.nullcontext() as shown:
            for row in rows:
                [decoded[row.video]] = quarantined([row.to_row()], takes)
                if shown is not None:
                    shown.update(1)
        return decoded

    def _write(self, decoded: Decoded) -> None:
        """Write the other tables that later stages read. Raises `DataError` when no video could be decoded."""
        frames, quarantine = sorted_out(decoded)
        usable = [example for example in self.probe if all(name in frames for name in example.context.visuals)]
        files.write_table(self.folder / "probe.parquet", usable)
        files.write_places(self.folder / "frames.json", frames)
        files.write_table(self.quarantine / "quarantine.parquet", quarantine)
        files.write_json(self.folder / "videos.json", videos := count_videos(decoded))
        note_left_out(videos, self.quarantine / "quarantine.parquet", self.round_index)
        if (warning := lookalike_warning(frames, self.train, self.probe, split="probe")) is not None:
            progress.warn(warning)
