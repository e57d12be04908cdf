"""One round's training as settings and paths: everything that `actors.learner` needs."""

from __future__ import annotations

import dataclasses
from typing import Any

from vidalign import mirror, stored
from vidalign.config.run import ModelConfig, ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.model.folder import stage_model
from vidalign.types import FrameSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What a rank needs to know, as paths and settings only, so that it can be sent as a small dict.

    `reference` and `doubt` are JSON files {pair id: its file of tensors} and {pair id: its doubt}, or empty. Doubt is what
    `train.uncertainty` estimated; the pairs that it dropped are missing there. `checkpoints` is where Ray Train keeps its own. For an
    objective on groups, `pairs` holds the groups, and `responses` the tokens of their responses. `tensorboard`: also write
    TensorBoard's events. `values` is a JSON file {group id: its file of token values}, of a value model. For the training of one,
    `heldout` holds the pairs that it is measured on.
    """

    model: ModelConfig
    policy_path: str
    policy_version: str
    train: TrainConfig
    objective: ObjectiveConfig
    plain_prompt: str
    frame_spec: FrameSpec
    seed: int
    pairs: str
    frames: str
    probe: str
    reference: str
    stage: str
    export: str
    doubt: str = ""
    cache: str = ""
    checkpoints: str = ""
    responses: str = ""
    tensorboard: bool = True
    values: str = ""
    heldout: str = ""

    def staged(self) -> TrainJob:
        """The job with all that it names on this node, where that is in a store. Raises as `vidalign.model.folder.stage_model`."""
        for path in (
            self.pairs,
            self.responses,
            self.frames,
            self.probe,
            self.reference,
            self.doubt,
            self.values,
            self.heldout,
        ):
            mirror.fetched(path)
        return dataclasses.replace(self, policy_path=stage_model(self.model.path, self.policy_path))

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON values."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("model", "train", "objective"):
            row[name] = row[name].model_dump(mode="json")
        row["frame_spec"] = self.frame_spec.to_row()
        return row

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> TrainJob:
        """The job of a `to_dict`, with this node's paths."""
        values: dict[str, Any] = {
            name: stored.here(value) if isinstance(value, str) else value for name, value in row.items()
        }
        return cls(
            **{
                **values,
                "model": ModelConfig(**row["model"]),
                "train": TrainConfig(**row["train"]),
                "objective": ObjectiveConfig(**row["objective"]),
                "frame_spec": FrameSpec.from_row(row["frame_spec"]),
            }
        )
