"""Rollout: examples ─► decoded frames ─► responses ─► pairs, as one Ray Data stream.

    examples in chunks ─► Decoder pool (CPU) ─► Generator pool (vLLM) ─► part files ─► responses, quarantine ─► pairs

Decoding of later chunks overlaps generation of earlier ones. A chunk whose part is on disk is not made again, and chunks do
not depend on each other, so a run that was killed continues to the same responses. The driver holds ids, texts and paths.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from actors.decoder import Decoder, decode_videos
from actors.generator import Generator, part_path
from cluster.resources import ResourcePlan
from pipelines import progress
from pipelines.stages.judge import judge_responses, rewrite_responses
from vidalign import files
from vidalign.config.recipes import GivenRecipe, HoundRecipe, LeanpoRecipe, RecipeConfig, RrpoRecipe
from vidalign.config.run import RunConfig
from vidalign.data.reading import read_examples, read_pairs
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.recipes import RECIPES
from vidalign.recipes.lint import filter_pairs, lint
from vidalign.recipes.pairing import make_pairs
from vidalign.statistics import rank_correlation
from vidalign.types import Example, Judgement, PolicyVersion, PreferencePair, QuarantineRow, Response


@dataclasses.dataclass(frozen=True)
class RolloutInputs:
    """The examples a rollout is made from, read and checked."""

    train: list[Example]
    probe: list[Example]
    given: list[PreferencePair] = dataclasses.field(default_factory=list)  # one a train example, recipe "given" only


def read_inputs(config: RunConfig) -> RolloutInputs:
    """Raises `DataError` on malformed rows, and on a probe example that is also trained on."""
    data = config.data
    given: list[PreferencePair] = []
    if isinstance(config.recipe, GivenRecipe):
        train, given = read_pairs(data.train, video_root=data.video_root, limit=data.limit)
    else:
        train = read_examples(data.train, video_root=data.video_root, limit=data.limit)
    if isinstance(config.recipe, HoundRecipe) and config.recipe.captions == "data":
        uncaptioned = [example.id for example in train if not example.caption.strip()]
        if uncaptioned:
            raise DataError(
                f"recipe.captions=data needs a 'caption' in every row of {data.train}, but {len(uncaptioned)} of {len(train)} "
                f"have none, first {uncaptioned[0]!r}; add captions, or set recipe.captions=policy to have the policy write them"
            )
    probe = read_examples(data.probe, video_root=data.video_root) if data.probe else []
    shared = {example.video for example in train} & {example.video for example in probe}
    if shared:
        raise DataError(
            f"data.probe must share no video with data.train, but {len(shared)} are in both, first {min(shared)}; "
            "remove them from one of the two files"
        )
    return RolloutInputs(train=train, probe=probe, given=given)


def rollout(config: RunConfig, run: RunFolder, plan: ResourcePlan, policy: PolicyVersion, round_index: int = 0) -> None:
    """Write the responses, quarantine and pairs of one round. Finished stages are skipped. Needs a Ray connection."""
    inputs = read_inputs(config)
    stage = run.stage("responses", round_index)
    made_from = {
        "policy": policy.version,
        "seed": config.seed,
        "model": config.model.model_dump(mode="json", exclude={"path"}),
        "video": config.video.frame_spec().to_row(),
        "recipe": config.recipe.model_dump(mode="json", exclude=set(config.recipe.PAIRING)),
        "examples": [example.to_row() for example in [*inputs.train, *inputs.probe]],
        "chunk": config.rollout.batch_size,
    }
    if not files.is_finished(stage, made_from):
        files.claim(stage, made_from)
        if inputs.given:
            engine_s: dict[str, float] = {}
            decoded = _decode(config, run, plan, inputs.train, f"decode, round {round_index}")
            files.write_table(stage / "responses.parquet", [])
        else:
            _generate(config, run, plan, policy, inputs.train, round_index)
            decoded, engine_s = _collect(config, run, inputs.train, round_index)
        decoded |= _decode(config, run, plan, inputs.probe)
        _write(run, inputs, decoded, round_index)
        files.finish(stage, made_from, policy=policy.version, engine_s=engine_s)
    _pair(config, run, plan, inputs, round_index, made_from)


def _generate(
    config: RunConfig,
    run: RunFolder,
    plan: ResourcePlan,
    policy: PolicyVersion,
    examples: Sequence[Example],
    round_index: int,
) -> None:
    import pandas as pd
    import ray.data

    parts = run.stage("responses", round_index) / "parts"
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
            ray.data.from_blocks(blocks)
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


def _collect(
    config: RunConfig, run: RunFolder, examples: Sequence[Example], round_index: int
) -> tuple[dict[str, dict[str, str]], dict[str, float]]:
    """Write the responses of all parts as one table.

    Returns how each video decoded, and the engines' seconds of starting, waiting and working.
    """
    stage = run.stage("responses", round_index)
    paths = [part_path(stage / "parts", index) for index, _ in enumerate(_chunks(examples, config.rollout.batch_size))]
    files.join_tables([path.with_suffix(".parquet") for path in paths], stage / "responses.parquet")
    decoded: dict[str, dict[str, str]] = {}
    engine_s: collections.Counter[str] = collections.Counter()
    for path in paths:
        part = files.read_json(path)
        decoded |= {row["video"]: row for row in part["decoded"]}
        engine_s.update(part.get("engine_s", {}))
    return decoded, {name: round(seconds, 2) for name, seconds in engine_s.items()}


def _decode(
    config: RunConfig, run: RunFolder, plan: ResourcePlan, examples: Sequence[Example], label: str = ""
) -> dict[str, dict[str, str]]:
    """Decode the videos of examples that no engine answers."""
    if not examples:
        return {}
    videos = list(dict.fromkeys(example.video for example in examples))
    rows = decode_videos(
        videos,
        config.video.frame_spec(),
        str(frame_cache(config, run)),
        backend=config.video.backend,
        deadline_s=config.video.deadline_s,
        num_decoders=plan.decoders.num,
        num_cpus=plan.decoders.cpus,
    ).iter_rows()
    decoded = {}
    with progress.bar(label, len(videos), "video") if label else contextlib.nullcontext() as shown:
        for row in rows:
            decoded[row["video"]] = {name: str(row[name]) for name in ("video", "frames_path", "reason", "message")}
            if shown is not None:
                shown.update(1)
    return decoded


def _write(
    run: RunFolder,
    inputs: RolloutInputs,
    decoded: dict[str, dict[str, str]],
    round_index: int,
) -> None:
    """Write the other tables that later stages read. Raises `DataError` when no video could be decoded."""
    stage = run.stage("responses", round_index)
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
    config: RunConfig,
    run: RunFolder,
    plan: ResourcePlan,
    rollout_inputs: RolloutInputs,
    round_index: int,
    made_from: dict[str, Any],
) -> None:
    recipe = config.recipe
    stage = run.stage("pairs", round_index)
    inputs = {
        "responses": made_from,
        "pairing": recipe.model_dump(mode="json", include=set(recipe.PAIRING)),
        "given": [pair.id for pair in rollout_inputs.given],
    }
    if files.is_finished(stage, inputs):
        return
    facts: dict[str, Any] = {}
    responses = _read_responses(run, round_index)
    if rollout_inputs.given:
        frames = files.read_json(run.stage("responses", round_index) / "frames.json")
        pairs = [pair for pair in rollout_inputs.given if pair.video in frames]
        dropped = (
            {"video_quarantined": len(rollout_inputs.given) - len(pairs)} if len(pairs) < len(rollout_inputs.given) else {}
        )
    else:
        judgements: list[Judgement] = []
        if isinstance(recipe, HoundRecipe) or (isinstance(recipe, RrpoRecipe) and recipe.wrong_by == "judge"):
            judgements, facts = judge_responses(recipe, run, plan, rollout_inputs.train, responses, round_index)
        if isinstance(recipe, RrpoRecipe) and recipe.rewrite == "judge":
            responses += rewrite_responses(recipe, run, plan, rollout_inputs.train, responses, judgements, round_index)
        earlier, times_drawn = _replays(run, recipe, round_index)
        pairs, dropped = make_pairs(
            rollout_inputs.train,
            [*responses, *earlier],
            recipe,
            judgements,
            times_drawn=times_drawn,
            seed=config.seed + round_index,
        )
    if not pairs:
        raise DataError(
            f"no preference pair was made from {len(rollout_inputs.train)} examples ({dropped}); raise recipe.num_candidates or "
            "the temperature, loosen the recipe's pair rule, or look at the responses of this run"
        )
    report = lint(pairs, recipe.lint)
    pairs, filtered = filter_pairs(pairs, report, recipe.lint)
    if not pairs:
        raise DataError(
            f"recipe.lint dropped all {report.num_pairs} pairs ({filtered}); loosen it, and look at the responses of this run"
        )
    files.write_json(stage / "lint.json", report.to_row())
    files.write_table(stage / "pairs.parquet", pairs)
    scored = [
        r for r in responses if math.isfinite(r.reward) and math.isfinite(r.trust) and r.kind not in ("truth", "caption")
    ]
    correlation = rank_correlation([r.reward for r in scored], [r.trust for r in scored])
    files.finish(stage, inputs, kept=len(pairs), dropped=dropped | filtered, reward_trust_correlation=correlation, **facts)


def _replays(
    run: RunFolder, recipe: RecipeConfig, round_index: int
) -> tuple[list[Response], collections.Counter[tuple[str, str]]]:
    """Replayed responses of earlier rounds, the newest `replay_buffer` of them, and how often each was a rejected side."""
    responses: list[Response] = []
    times: collections.Counter[tuple[str, str]] = collections.Counter()
    if not isinstance(recipe, LeanpoRecipe) or recipe.negatives == "augmented":
        return responses, times
    for index in range(round_index):
        responses += [r for r in _read_responses(run, index) if r.kind == "replayed"]
        pairs = files.read_table(run.stage("pairs", index) / "pairs.parquet", PreferencePair)
        times.update((pair.example_id, pair.rejected) for pair in pairs)
    return responses[-recipe.replay_buffer :], times


def _read_responses(run: RunFolder, round_index: int) -> list[Response]:
    """Responses of a round without their tokens, which pairing does not need and which are most of them."""
    path = run.stage("responses", round_index) / "responses.parquet"
    return files.read_table(path, Response, without=("token_ids", "log_probs"))


def frame_cache(config: RunConfig, run: RunFolder) -> pathlib.Path:
    """The run's own frame cache, or the one that several runs share by `video.cache_dir`."""
    return pathlib.Path(config.video.cache_dir).absolute() if config.video.cache_dir else run.frames


def _chunks(examples: Sequence[Example], size: int) -> list[list[Example]]:
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]
