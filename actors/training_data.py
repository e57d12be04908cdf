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
from vidalign.learning.group_data import extremes, first_learned, training_group, usable_groups, with_token_advantages
from vidalign.learning.objectives.base import AnyObjective
from vidalign.learning.objectives.groups import GroupObjective
from vidalign.learning.pair_data import usable_pairs
from vidalign.learning.sequences import TrainingGroup, pair_group, truth_group
from vidalign.model import shared_prefix, vision_features
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import TensorCache, missing, read_tensors
from vidalign.types import Example, PreferencePair, Response, ResponseGroup


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The data of a training job.

    `groups` are trained on, `probe` is only measured. `reference` (files of tensors) and `doubt` are by group id.
    """

    groups: Sequence[TrainingGroup]
    probe: Sequence[TrainingGroup]
    reference: Mapping[str, str]
    doubt: Mapping[str, float]
    heldout: Sequence[TrainingGroup] = ()

    @classmethod
    def read(cls, job: TrainJob, objective: AnyObjective) -> TrainingData:
        """Read the job's files, without what the objective cannot use and pairs whose order is too doubtful."""
        doubt: dict[str, float] = files.read_json(pathlib.Path(job.doubt)) if job.doubt else {}
        if isinstance(objective, GroupObjective):
            groups = response_groups(job, objective)
            if objective.needs_values:
                groups = _valued(job, objective, groups)
        else:
            pairs, _ = usable_pairs(files.read_table(pathlib.Path(job.pairs), PreferencePair), objective)
            groups = [pair_group(pair) for pair in pairs if not job.doubt or pair.id in doubt]
        return cls(
            groups=groups,
            probe=[truth_group(example) for example in files.read_table(pathlib.Path(job.probe), Example)],
            reference=files.read_places(pathlib.Path(job.reference)) if job.reference else {},
            doubt=doubt,
            heldout=[pair_group(pair) for pair in files.read_table(pathlib.Path(job.heldout), PreferencePair)]
            if job.heldout
            else (),
        )

    def kept(self, group: str) -> dict[str, torch.Tensor]:
        """The reference's outputs for a group, see `actors.reference.Reference`."""
        return read_tensors(self.reference[group])

    @property
    def watched(self) -> Sequence[TrainingGroup]:
        """What displacement is measured of: the pairs, or their chosen sides where some have no other; of groups that differ, the
        best and the worst response; of groups with a value model's advantages, their first response.
        """
        if any(response.token_advantages for response in self.groups[0].responses):
            return [first_learned(group) for group in self.groups]
        if any(response.role == "member" for response in self.groups[0].responses):
            return [pair for group in self.groups if (pair := extremes(group)) is not None]
        if all(len(group.responses) == 2 for group in self.groups):
            return self.groups
        return [group.only("chosen") for group in self.groups]


def response_groups(job: TrainJob, objective: GroupObjective) -> list[TrainingGroup]:
    """The job's groups, with the tokens of their responses."""
    groups, _ = usable_groups(files.read_table(pathlib.Path(job.pairs), ResponseGroup), objective)
    sampled = {
        (response.example_id, response.candidate): (response.token_ids, response.log_probs)
        for response in files.read_table(pathlib.Path(job.responses), Response)
        if response.kind == "plain"
    }
    return [training_group(group, sampled, objective) for group in groups]


def _valued(job: TrainJob, objective: GroupObjective, groups: Sequence[TrainingGroup]) -> list[TrainingGroup]:
    kept = files.read_places(pathlib.Path(job.values))
    return with_token_advantages(groups, lambda group: read_tensors(kept[group]), lam=objective.values_lam)


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
    vision_features.check_shown(context for group in groups for context, _ in group.prompts)
    tower = vision_features.tower_hash(model, source.processor)
    clips = sorted({source.frames[name] for group in groups for context, _ in group.prompts for name in context.visuals})
    kept = {clip: vision_features.path(cache, tower, clip) for clip in clips}
    todo = missing(kept).intersection(clips[dist.get_rank() :: dist.get_world_size()])
    rendered = source.clips(groups, only=todo)
    vision_features.compute(model, ((prompt, kept[clip]) for prompt, clip in rendered), device, dtype)
    dist.barrier()
    return dataclasses.replace(source, features=kept)
