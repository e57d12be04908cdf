"""What the files of a training job hold, and how its groups are rendered."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from actors.train_job import TrainJob
from vidalign import files
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.objectives.base import Objective
from vidalign.learning.pair_data import usable_pairs
from vidalign.learning.sequences import TrainingGroup, pair_group, truth_group
from vidalign.model import shared_prefix, vision_features
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import TensorCache, missing, read_tensors
from vidalign.types import Example, PreferencePair


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data of a training job.

    `groups` are trained on, `probe` is only measured. `reference` (files of tensors) and `doubt` are by group id.
    """

    groups: Sequence[TrainingGroup]
    probe: Sequence[TrainingGroup]
    reference: Mapping[str, str]
    doubt: Mapping[str, float]

    @classmethod
    def read(cls, job: TrainJob, objective: Objective) -> TrainingData:
        """Read the job's files, without pairs that the objective cannot use or whose order is too doubtful."""
        pairs, _ = usable_pairs(files.read_table(pathlib.Path(job.pairs), PreferencePair), objective)
        doubt: dict[str, float] = files.read_json(pathlib.Path(job.doubt)) if job.doubt else {}
        return cls(
            groups=[pair_group(pair) for pair in pairs if not job.doubt or pair.id in doubt],
            probe=[truth_group(example) for example in files.read_table(pathlib.Path(job.probe), Example)],
            reference=files.read_json(pathlib.Path(job.reference)) if job.reference else {},
            doubt=doubt,
        )

    def kept(self, group: str) -> dict[str, torch.Tensor]:
        """The reference's outputs for a group, see `actors.reference.Reference`."""
        return read_tensors(self.reference[group])

    @property
    def two_sided(self) -> bool:
        """Whether every group has a rejected response in addition to its chosen one."""
        return all(len(group.responses) == 2 for group in self.groups)


def batch_source(job: TrainJob, model: Any, *, packed: bool) -> BatchSource:
    """The source that renders the job's groups for its model."""
    return BatchSource(
        frames=files.read_places(pathlib.Path(job.frames)),
        processor=cached_processor(job.policy_path, job.model.trust_remote_code),
        plain_prompt=job.plain_prompt,
        max_model_len=job.model.max_model_len,
        number=shared_prefix.numbering(model) if packed else None,
    )


def with_features(
    source: BatchSource,
    groups: Sequence[TrainingGroup],
    model: Any,
    cache: TensorCache,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> BatchSource:
    """The source with features in place of pixels, after each rank has computed those of its share of the videos. Collective.

    Raises:
        ConfigError: a model of this family takes no features, or a prompt shows more than one video.
    """
    vision_features.check(model)
    vision_features.check_shown(group.context for group in groups)
    tower = vision_features.tower_hash(model, source.processor)
    clips = sorted({source.frames[name] for group in groups for name in group.context.visuals})
    kept = {clip: vision_features.path(cache, tower, clip) for clip in clips}
    todo = missing(kept).intersection(clips[dist.get_rank() :: dist.get_world_size()])
    rendered = source.clips(
        group for group in groups if todo.issuperset(source.frames[name] for name in group.context.visuals)
    )
    vision_features.compute(model, ((prompt, kept[clip]) for prompt, clip in rendered), device, dtype)
    dist.barrier()
    return dataclasses.replace(source, features=kept)
