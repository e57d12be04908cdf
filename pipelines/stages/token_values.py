"""Token values: what a frozen value model says of each token of a round's responses, computed once and kept by content.

As for the reference (`pipelines/stages/reference.py`), there is no manifest: each group has one file, named by a hash of everything
it depends on. The value model is another model than the one that is trained, so actors compute it before the training starts.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from actors.reference import kept_paths
from actors.token_values import TokenValues
from actors.train_job import TrainJob
from pipelines import progress
from pipelines.stages.base import manifest
from pipelines.stages.reference import Training
from vidalign import files
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import TensorCache, missing
from vidalign.model.turns import turns_of
from vidalign.types import ResponseGroup


def value_files(stage: Training, groups: Sequence[ResponseGroup], job: TrainJob, value: pathlib.Path) -> pathlib.Path:
    """JSON file {id of a group: its file of token values}, all of which exist afterwards. `value`: a finished value stage's folder."""
    kept = kept_paths(
        TensorCache(stage.cache / "values"),
        groups,
        files.read_places(stage.frames),
        policy_version=manifest(value)["value"],
        dtype=stage.model.dtype,
        plain_prompt=stage.plain_prompt,
        parts=["values"],
        turns=turns_of(cached_processor(stage.policy.path, stage.model.trust_remote_code)).key(),
    )
    index_path = stage.run_folder.stage("values", stage.round_index) / "files.json"
    files.write_places(index_path, kept)
    if todo := missing(kept):
        indices = [index for index, group in enumerate(groups) if group.id in todo]
        with progress.bar(f"values, round {stage.round_index}", len(kept), "group") as shown:
            shown.update(len(kept) - len(todo))
            for row in _stream(stage, indices, job, value, index_path).iter_rows():
                shown.update(int(row["done"]))
    return index_path


def _stream(stage: Training, indices: Sequence[int], job: TrainJob, value: pathlib.Path, index_path: pathlib.Path) -> Any:
    import ray.data

    return ray.data.from_items([{"index": index} for index in indices]).map_batches(
        TokenValues,
        fn_constructor_kwargs={
            "job": job.to_dict(),
            "value": str(value),
            "kept": str(index_path),
            "use_gpu": stage.workers.gpus > 0,
        },
        batch_size=stage.train.micro_batch_size,
        compute=ray.data.ActorPoolStrategy(size=stage.workers.num),
        num_cpus=stage.workers.cpus,
        num_gpus=stage.workers.gpus,
    )
