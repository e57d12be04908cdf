"""Reference: log-probs of a round's pairs under the policy that the round starts from, computed once and kept by content.

There is no manifest. Each pair has one file, named by a hash of everything it depends on, so a run that was stopped continues, and
another run with the same pairs computes nothing. What is missing is computed by the ranks of the training, whose weights may be
sharded, before their first step (`actors.reference.write_missing`). Only `train.uncertainty`, which decides on which pairs is
trained, needs it earlier.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

from actors.reference import Reference, kept_paths, parts_of
from cluster.resources import Workers
from pipelines import progress
from vidalign import files
from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.files import RunFolder
from vidalign.learning.objectives.base import AnyObjective
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import TensorCache, missing
from vidalign.model.turns import turns_of
from vidalign.types import PolicyVersion, PreferencePair, ResponseGroup


class Training(Protocol):
    """The part of a training stage (`pipelines.stages.train.Train`) that is needed here."""

    run_folder: RunFolder
    cache: pathlib.Path
    round_index: int
    model: ModelConfig
    train: TrainConfig
    plain_prompt: str
    policy: PolicyVersion
    workers: Workers
    pairs: pathlib.Path
    responses: pathlib.Path

    @property
    def frames(self) -> pathlib.Path: ...


def reference_files(
    stage: Training, usable: Sequence[PreferencePair | ResponseGroup], objective: AnyObjective
) -> pathlib.Path | None:
    """JSON file {id of a pair or group: its reference file}; None if the objective needs no reference.

    With `train.uncertainty`, all of these files exist afterwards; without it, the training writes those that are missing.
    """
    parts = parts_of(hidden=objective.needs_kl, features=stage.train.uncertainty is not None)
    if not (objective.uses_reference or parts):
        return None
    kept = kept_paths(
        TensorCache(stage.cache / "reference"),
        usable,
        files.read_places(stage.frames),
        policy_version=stage.policy.version,
        dtype=stage.model.dtype,
        plain_prompt=stage.plain_prompt,
        parts=parts,
        turns=turns_of(cached_processor(stage.policy.path, stage.model.trust_remote_code)).key(),
        float32_head=stage.train.float32_head,
        quantize=stage.train.lora.quantize if stage.train.lora is not None else None,
    )
    index_path = stage.run_folder.stage("reference", stage.round_index) / "files.json"
    files.write_places(index_path, kept)
    todo = missing(kept)
    if todo and "features" in parts:
        with progress.bar(f"reference, round {stage.round_index}", len(kept), "pair") as shown:
            shown.update(len(kept) - len(todo))
            for row in _stream(stage, todo, index_path, parts).iter_rows():
                shown.update(int(row["done"]))
    return index_path


def _stream(stage: Training, todo: set[str], index_path: pathlib.Path, parts: Sequence[str]) -> Any:
    import ray.data

    pairs_path = stage.pairs / "pairs.parquet"
    indices = [index for index, pair in enumerate(files.read_table(pairs_path, PreferencePair)) if pair.id in todo]
    return ray.data.from_items([{"index": index} for index in indices]).map_batches(
        Reference,
        fn_constructor_kwargs={
            "model": stage.model.model_dump(mode="json"),
            "path": stage.policy.path,
            "pairs": str(pairs_path),
            "frames": str(stage.frames),
            "plain_prompt": stage.plain_prompt,
            "use_gpu": stage.workers.gpus > 0,
            "kept": str(index_path),
            "parts": parts,
            "packed": stage.train.shared_prefix,
            "float32_head": stage.train.float32_head,
        },
        batch_size=stage.train.micro_batch_size,
        compute=ray.data.ActorPoolStrategy(size=stage.workers.num),
        num_cpus=stage.workers.cpus,
        num_gpus=stage.workers.gpus,
    )
