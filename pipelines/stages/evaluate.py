"""Evaluate: the held-out questions over HTTP, to base and aligned behind one endpoint or one after the other, and to base blind."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from cluster.resources import ServePlan
from pipelines.answer_log import rename_questions
from pipelines.moved import Moved
from pipelines.stages.base import Stage
from pipelines.stages.responses import digest, media_limits
from serving.spec import EndpointSpec
from vidalign.config.run import EvaluateConfig, ModelConfig, ServeConfig, VideoConfig
from vidalign.data.shown import missing_file
from vidalign.errors import DataError
from vidalign.model.folder import stage_model
from vidalign.types import Example, PolicyVersion
from vidalign.video.naming import local_path, visual_of
from vidalign.video.relevance import decided_by


@dataclasses.dataclass(kw_only=True)
class Evaluate(Stage):
    """The answers of every served policy to the held-out questions, one table a model."""

    name: ClassVar[str] = "evaluate"

    folder: pathlib.Path
    model: ModelConfig
    video: VideoConfig
    serve: ServeConfig
    evaluate: EvaluateConfig
    prompt: str
    policies: Mapping[str, PolicyVersion]
    examples: Sequence[Example]
    plan: ServePlan
    wait_for_nodes_s: float = EndpointSpec.wait_for_nodes_s
    data: Moved = dataclasses.field(default_factory=Moved)
    earlier: Callable[[], Stage | None] | None = None

    def inputs(self) -> dict[str, Any]:
        return {
            **{f"policy.{name}": policy.version for name, policy in self.policies.items()},
            "data.eval": digest(self.examples),
            "evaluate": self.evaluate.deciding(),
            "video": self.video.frame_spec().to_row(),
            "recipe.plain_prompt": self.prompt,
            **decided_by(self.video.frame_spec()),
        }

    def elsewhere(self) -> Iterator[Evaluate]:
        return (dataclasses.replace(self, examples=former) for former in self.data.examples("eval", self.examples))

    def inputs_v1(self) -> dict[str, Any]:
        return {
            "policies": [policy.version for policy in self.policies.values()],
            "examples": [example.to_row() for example in self.examples],
            "evaluate": self.evaluate.recorded(include={"max_new_tokens", "blind"}),
            "video": self.video.frame_spec().to_row(),
            "prompt": self.prompt,
        }

    def run(self) -> dict[str, Any]:
        """Ask every model that has not answered everything yet, and write its table."""
        from pipelines.asking import evaluate_each, num_unanswered
        from pipelines.endpoints import at_each, at_its_pace
        from serving.app import Endpoint

        for log in self.folder.glob("*.jsonl"):
            rename_questions(log, self.data.examples("eval", self.examples), self.examples)
        media_root = self.serve.media_root or common_folder(self.examples)
        spec = EndpointSpec(
            models=self.policies,
            model=self.model,
            serve=self.serve.model_copy(update={"media_root": media_root}),
            plan=self.plan,
            frame_spec=self.video.frame_spec(),
            decoder=self.video.backend,
            limits=media_limits(self.examples),
            deadline_s=self.video.deadline_s,
            num_decoders=self.video.most_decoders,
            plain_prompt=self.prompt,
            wait_for_nodes_s=self.wait_for_nodes_s,
        )
        for policy in self.policies.values():
            stage_model(self.model.path, policy.path)
        asked = [(name, False) for name in self.policies] + ([("base", True)] if self.evaluate.blind else [])
        kept: dict[str, Any] = {"stage": self.folder, "prompt": self.prompt}

        def is_wanted(name: str, blind: bool) -> bool:
            version, config = self.policies[name].version, self.evaluate
            return num_unanswered(self.examples, model_id=name, blind=blind, version=version, config=config, **kept) > 0

        wanted = {name for name, blind in asked if is_wanted(name, blind)}
        if wanted:
            refuse_none(self.examples)

        def ask(running: Endpoint) -> None:
            here = [(name, blind) for name, blind in asked if name in running.versions]
            config, own_gpus = at_its_pace(self.evaluate, spec), spec.plan.bundle_gpus == 1
            evaluate_each(self.examples, running, here, at_once=own_gpus, config=config, **kept)

        at_each(spec, wanted, ask)
        return {"endpoint": {"model_ids": list(self.policies)}}


def refuse_none(examples: Sequence[Example]) -> None:
    """Raises `DataError` where none of what these examples show is there, as where a mount is missing: no answer is kept for that."""
    names = list(dict.fromkeys(name for example in examples for name in example.context.visuals))
    if names and all(missing_file(name) is not None for name in names):
        raise DataError(
            f"none of the {len(names):,} videos of data.eval exists, first {names[0]}; mount what holds them, or set data.video_root "
            "to the folder that the 'video' fields are relative to, and run the same command again: it continues"
        )


def common_folder(examples: Sequence[Example]) -> str | None:
    """The deepest folder that holds every local video and image of these examples: what the endpoint may read files from.

    Frames in a list do not count, since they are sent. None where no folder but the root of the file system holds them all, or there
    are none: then everything is sent.
    """
    shown = {visual_of(name) for example in examples for name in example.context.visuals}
    paths = [local_path(visual.uris[0]) for visual in shown if visual.kind != "list"]
    folders = [str(pathlib.Path(path).parent) for path in paths if path is not None]
    common = os.path.commonpath(folders) if folders else os.sep
    return None if common == os.path.dirname(common) else common
