"""Rollout: examples ─► decoded frames ─► responses ─► pairs, as one Ray Data stream.

    examples in chunks ─► Decoder pool (CPU) ─► Generator pool (vLLM) ─► part files ─► responses, quarantine ─► pairs

Decoding of later chunks overlaps generation of earlier ones. A chunk whose part is on disk is not made again, and chunks do
not depend on each other, so a run that was killed continues to the same responses. The driver holds ids, texts and paths.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from actors.decoder import Decoder, decode_videos
from actors.generator import Generator, part_path
from cluster.plan import ResourcePlan
from pipelines import progress
from pipelines.recipes import RECIPES
from vidalign import files, scoring
from vidalign.config import RunConfig
from vidalign.datasets import read_examples
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.pairing import make_pairs
from vidalign.types import Example, PolicyVersion, QuarantineRow, Response


@dataclasses.dataclass(frozen=True)
class RolloutInputs:
    """The examples a rollout is made from, read and checked."""

    train: list[Example]
    probe: list[Example]


def read_inputs(config: RunConfig) -> RolloutInputs:
    """Raises `DataError` on malformed rows, and on a probe example that is also trained on."""
    data = config.data
    train = read_examples(data.train, video_root=data.video_root, limit=data.limit)
    probe = read_examples(data.probe, video_root=data.video_root) if data.probe else []
    shared = {example.video for example in train} & {example.video for example in probe}
    if shared:
        raise DataError(
            f"data.probe must share no video with data.train, but {len(shared)} are in both, first {min(shared)}; "
            "remove them from one of the two files"
        )
    return RolloutInputs(train=train, probe=probe)


def rollout(config: RunConfig, run: RunFolder, plan: ResourcePlan, policy: PolicyVersion, round_index: int = 0) -> None:
    """Write the responses, quarantine and pairs of one round. Finished stages are skipped. Needs a Ray connection."""
    inputs = read_inputs(config)
    stage = run.stage("responses", round_index)
    made_from = {
        "policy": policy.version,
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"path"}),
        "video": config.video.frame_spec().to_row(),
        "recipe": config.recipe.model_dump(mode="json", exclude={"pair_rule", "min_trust_gap"}),
        "examples": [example.to_row() for example in [*inputs.train, *inputs.probe]],
        "chunk": config.rollout.batch_size,
    }
    if not files.is_finished(stage, made_from):
        _generate(config, run, plan, policy, inputs.train, round_index, made_from)
        _gather(config, run, plan, inputs, round_index)
        files.finish(stage, made_from, policy=policy.version)
    _pair(config, run, inputs.train, round_index, made_from)


def _generate(
    config: RunConfig,
    run: RunFolder,
    plan: ResourcePlan,
    policy: PolicyVersion,
    examples: Sequence[Example],
    round_index: int,
    made_from: dict[str, Any],
) -> None:
    import pandas as pd
    import ray.data

    parts = run.stage("responses", round_index) / "parts"
    files.claim(run.stage("responses", round_index), made_from)
    chunks = list(enumerate(_chunks(examples, config.rollout.batch_size)))
    todo = [(index, chunk) for index, chunk in chunks if not part_path(parts, index).is_file()]
    with progress.bar(f"rollout, round {round_index}", len(examples), "example") as shown:
        shown.update(sum(len(chunk) for _, chunk in chunks) - sum(len(chunk) for _, chunk in todo))
        if not todo:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        blocks = [
            pd.DataFrame(
                {
                    "chunk": index,
                    "video": [example.video for example in chunk],
                    "example": [json.dumps(example.to_row()) for example in chunk],
                }
            )
            for index, chunk in todo
        ]
        recipe = functools.partial(
            RECIPES[config.recipe.name],
            recipe=config.recipe,
            policy_version=policy.version,
            seed=config.seed + round_index,
        )
        stream = (
            ray.data.from_pandas(blocks)
            .map_batches(
                Decoder,
                fn_constructor_kwargs={
                    "spec": config.video.frame_spec(),
                    "cache_dir": str(frame_cache(config, run)),
                    "backend": config.video.backend,
                    "deadline_s": config.video.deadline_s,
                },
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=plan.decoders.num),
                num_cpus=plan.decoders.cpus,
            )
            .map_batches(
                Generator,
                fn_constructor_kwargs={
                    "model": config.model.model_dump(mode="json"),
                    "path": policy.path,
                    "num_gpus": int(plan.engines.gpus),
                    "seed": config.seed,
                    "engine_args": dict(config.rollout.engine_args),
                    "respond": recipe,
                    "parts": str(parts),
                },
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=min(plan.engines.num, len(todo))),
                num_cpus=plan.engines.cpus,
                num_gpus=plan.engines.gpus,
            )
        )
        for row in stream.iter_rows():
            shown.update(int(row["num_examples"]))


def _gather(config: RunConfig, run: RunFolder, plan: ResourcePlan, inputs: RolloutInputs, round_index: int) -> None:
    """Join the parts, decode the probe's videos, and write the tables that later stages read."""
    stage = run.stage("responses", round_index)
    parts = stage / "parts"
    responses: list[Response] = []
    decoded: dict[str, dict[str, str]] = {}
    for index, _ in enumerate(_chunks(inputs.train, config.rollout.batch_size)):
        path = part_path(parts, index)
        responses += files.read_table(path.with_suffix(".parquet"), Response)
        decoded |= {row["video"]: row for row in files.read_json(path)["decoded"]}
    if inputs.probe:
        for row in decode_videos(
            [example.video for example in inputs.probe],
            config.video.frame_spec(),
            str(frame_cache(config, run)),
            backend=config.video.backend,
            deadline_s=config.video.deadline_s,
            num_decoders=plan.decoders.num,
            num_cpus=plan.decoders.cpus,
        ).iter_rows():
            decoded[row["video"]] = {name: str(row[name]) for name in ("video", "frames_path", "reason", "message")}
    frames = {video: row["frames_path"] for video, row in decoded.items() if row["frames_path"]}
    quarantine = [
        QuarantineRow(uri=video, reason=row["reason"], message=row["message"])
        for video, row in decoded.items()
        if not row["frames_path"]
    ]
    if not frames:
        raise DataError(
            f"none of the {len(decoded)} videos could be decoded; first reason: {quarantine[0].message}. "
            "Check data.video_root and the video files"
        )
    files.write_table(stage / "responses.parquet", responses)
    files.write_table(stage / "probe.parquet", [example for example in inputs.probe if example.video in frames])
    files.write_json(stage / "frames.json", frames)
    files.write_table(run.stage("quarantine", round_index) / "quarantine.parquet", quarantine)
    files.write_json(stage / "videos.json", count_videos(decoded))


def count_videos(decoded: dict[str, dict[str, str]]) -> dict[str, Any]:
    """{total, decoded, quarantined {reason: n}} of distinct videos."""
    reasons: dict[str, int] = {}
    for row in decoded.values():
        if not row["frames_path"]:
            reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    return {"total": len(decoded), "decoded": len(decoded) - sum(reasons.values()), "quarantined": reasons}


def _pair(
    config: RunConfig, run: RunFolder, examples: Sequence[Example], round_index: int, made_from: dict[str, Any]
) -> None:
    stage = run.stage("pairs", round_index)
    inputs = {
        "responses": made_from,
        "pair_rule": config.recipe.pair_rule,
        "min_trust_gap": config.recipe.min_trust_gap,
    }
    if files.is_finished(stage, inputs):
        return
    responses = files.read_table(run.stage("responses", round_index) / "responses.parquet", Response)
    pairs, dropped = make_pairs(examples, responses, config.recipe)
    if not pairs:
        raise DataError(
            f"no preference pair was made from {len(examples)} examples ({dropped}); lower recipe.min_trust_gap, raise "
            "recipe.num_candidates, or look at the responses of this run"
        )
    files.write_table(stage / "pairs.parquet", pairs)
    scored = [response for response in responses if response.text.strip()]
    correlation = scoring.rank_correlation([r.reward for r in scored], [r.trust for r in scored])
    files.finish(stage, inputs, kept=len(pairs), dropped=dropped, reward_trust_correlation=correlation)


def frame_cache(config: RunConfig, run: RunFolder) -> pathlib.Path:
    """The run's own frame cache, or the one that several runs share by `video.cache_dir`."""
    return pathlib.Path(config.video.cache_dir).absolute() if config.video.cache_dir else run.frames


def _chunks(examples: Sequence[Example], size: int) -> list[list[Example]]:
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]
