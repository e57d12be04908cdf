"""What a frozen value model says of each token of a round's responses, computed once and kept.

There is one file a group, named by the hash of (value model, rendering, tokens) and written as the reference's are
(`actors.reference`), so that a stage that was killed continues where it stopped.
"""

from __future__ import annotations

import pathlib
from typing import Any

from actors.reference import outputs_of_groups
from actors.train_job import TrainJob
from vidalign import files, mirror, stored
from vidalign.model.tensor_cache import write_tensors

MODEL = "model"  # in the folder of a value stage, beside its head


class TokenValues:
    """Ray Data actor: it takes indices of a training's groups, and the values of their responses are on disk before a call returns.

    A file holds `member_0`, `member_1`, …: the values [T] of the states before each token of each response, float32.
    """

    def __init__(self, job: dict[str, Any], value: str, kept: str, use_gpu: bool) -> None:
        """`job`: of the training that takes the values. `value`: folder of the value stage. `kept`: {group id: its file}, as JSON."""
        import torch

        from actors.training_data import batch_source, response_groups
        from vidalign.learning import objectives
        from vidalign.learning.objectives.groups import GroupObjective
        from vidalign.model import shared_prefix
        from vidalign.model.folder import stage_model
        from vidalign.model.policy import load_policy
        from vidalign.model.value_head import ValueScorer, read_head

        made = TrainJob.from_dict(job).staged()
        objective = objectives.build(made.objective.name, made.objective.params)
        assert isinstance(objective, GroupObjective)
        folder = pathlib.Path(stored.here(value))
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._dtype = getattr(torch, made.model.dtype)
        model = load_policy(made.model, stage_model(made.model.path, str(folder / MODEL)))
        packed = shared_prefix.wanted(model, made.train.shared_prefix)
        scorer = ValueScorer(model, packed=packed)
        read_head(scorer.value_head, folder)
        self._scorer = scorer.to(self._device).eval()
        self._groups = response_groups(made, objective)
        self._source = batch_source(made, model, packed=packed)
        self._kept = files.read_places(mirror.fetched(stored.here(kept)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Batch column: index of each group in the training's groups."""
        import torch

        from vidalign.model.batch import IGNORED

        groups = [self._groups[int(index)] for index in batch["index"]]
        rendered = self._source.batch(groups).to(self._device, self._dtype)
        mask = rendered.labels != IGNORED
        with torch.inference_mode():
            hidden = self._scorer.hidden(rendered.inputs, rendered.labels, rendered.sources)
            values = self._scorer.score(hidden, rendered.labels[mask])
        outputs = outputs_of_groups(values, hidden, mask.sum(-1).tolist(), (), names=groups[0].names)
        for group, tensors in zip(groups, outputs, strict=True):
            write_tensors(pathlib.Path(self._kept[group.id]), tensors)
        return {"done": [len(groups)]}
