"""Train: pairs or groups ─► reference log-probs, where the objective needs them ─► Ray Train + DeepSpeed ─► an exported policy."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from actors.checkpoints import leave_out_torn
from actors.learner import train_loop
from actors.train_job import TrainJob
from cluster import interrupts, placement
from cluster.resources import Workers
from cluster.waiting import ranks_asked_for_anew, times_asked_anew
from pipelines import progress
from pipelines.stages.base import Stage, identity, identity_v1, once
from pipelines.stages.clip_pairs import FRAMES
from pipelines.stages.doubt import DoubtStage
from pipelines.stages.reference import reference_files
from pipelines.stages.token_values import value_files
from vidalign import files, mirror, stored
from vidalign.config.run import ModelConfig, ObjectiveConfig
from vidalign.config.training import TrainConfig
from vidalign.data.source import GROUPS_FILE
from vidalign.errors import ClusterError, DataError
from vidalign.files import RunFolder
from vidalign.learning import objectives
from vidalign.learning.group_data import usable_groups
from vidalign.learning.objectives.base import AnyObjective
from vidalign.learning.objectives.groups import GroupObjective
from vidalign.learning.pair_data import usable_pairs
from vidalign.model.checkpoint import policy_version, read_card
from vidalign.types import FrameSpec, PolicyVersion, PreferencePair, ResponseGroup

MAX_BEHAVIOUR_GAP = 0.05  # nats a token; in bfloat16, 0.02 was seen of a 3B model (docs/performance.md)
MAX_LOST_CONTROLLERS = 3  # in one training, and of ranks that could not be started
MAX_RANK_STARTS = 30  # of ranks that could not be started, where fewer will do: each lost node costs one or two
RESIZE_EVERY_S = 60.0  # at least, between two changes of the number of ranks by which a training takes more
CHECKPOINTS = "ray"  # what Ray Train keeps of a training, its checkpoints among it


@dataclasses.dataclass(kw_only=True)
class Train(Stage):
    """One round's training on its pairs. A round that was killed continues from its newest checkpoint.

    `cache`: where what frozen models say is kept. `run_seed`: of the run; the round's own is derived from it.
    `tensorboard`: also write TensorBoard's events. `value`: folder of the value model that the objective takes, if it takes one.
    """

    name: ClassVar[str] = "train"
    once_in_layout = frozenset({"train.num_workers"})

    run_folder: RunFolder
    cache: pathlib.Path
    round_index: int
    model: ModelConfig
    train: TrainConfig
    objective: ObjectiveConfig
    plain_prompt: str
    frame_spec: FrameSpec
    policy: PolicyVersion
    workers: Workers
    run_seed: int
    tensorboard: bool = True
    value: pathlib.Path | None = None
    earlier: Callable[[], Stage | None] | None = None

    def __post_init__(self) -> None:
        self.folder = self.run_folder.stage("train", self.round_index)
        self.pairs = self.run_folder.stage("pairs", self.round_index)
        self.responses = self.run_folder.stage("responses", self.round_index)
        self.export = self.run_folder.stage("model", self.round_index)

    @property
    def needs(self) -> Sequence[pathlib.Path]:
        return [self.responses, self.pairs, *([self.value] if self.value else [])]

    @property
    def seed(self) -> int:
        return self.run_seed + self.round_index

    def inputs(self) -> dict[str, Any]:
        return {
            "pairs": identity(self.pairs),
            "policy": self.policy.version,
            "objective": self.objective.deciding(),
            "train": self.train.deciding(),
            "model.dtype": self.model.dtype,
            "seed": self.run_seed,
            **({"value": identity(self.value)} if self.value else {}),
        }

    @property
    def frames(self) -> pathlib.Path:
        """Where the clips of the round's videos are, and those of its pairs over videos, if it has any."""
        own = self.pairs / FRAMES
        return own if own.is_file() else self.responses / FRAMES

    def layout(self) -> dict[str, Any]:
        """DeepSpeed reads no checkpoint of another ZeRO stage; the figures of step 0 are of fixed pairs."""
        made = {f"train.{name}": getattr(self.train, name) for name in ("zero_stage", "num_monitored")}
        if self.train.num_probed != TrainConfig.model_fields["num_probed"].default:  # runs may be older than this option
            made["train.num_probed"] = self.train.num_probed
        return made

    def inputs_v1(self) -> dict[str, Any]:
        return {
            "pairs": identity_v1(self.pairs),
            "policy": self.policy.version,
            "objective": self.objective.recorded(),
            "train": self.train.recorded(),
            "dtype": self.model.dtype,
            "seed": self.run_seed,
        }

    def run(self) -> dict[str, Any]:
        """Train, and export the policy to the round's model folder."""
        objective = objectives.build(self.objective.name, self.objective.params)
        if isinstance(objective, GroupObjective):
            return self._on_groups(objective)
        usable, dropped = usable_pairs(files.read_table(self.pairs / "pairs.parquet", PreferencePair), objective)
        if not usable:
            raise DataError(
                f"objective.name={self.objective.name} can train on none of the pairs of this round ({dropped}); "
                "it needs rows with a chosen and a rejected response, and for rrpo responses that differ in words"
            )
        reference = reference_files(self, usable, objective)
        doubt, num_kept = "", len(usable)
        if self.train.uncertainty is not None:
            assert reference is not None
            stage = DoubtStage(
                folder=self.run_folder.stage("doubt", self.round_index),
                uncertainty=self.train.uncertainty,
                reference=reference,
                pair_ids=[pair.id for pair in usable],
                seed=self.seed,
            )
            left_out = once(stage).get("dropped", {})
            doubt, num_kept = str(stage.path), len(files.read_json(stage.path))
            dropped |= {reason: count for reason, count in left_out.items() if count}
        facts = win_rate_facts(usable, objective)
        if facts.get("win_rates", {}).get("hard"):
            progress.warn(
                f"{facts['win_rates']['hard']:,} of {len(usable):,} pairs have no win rates; objective.name={self.objective.name} "
                "takes 1 and 0 for them"
            )
        trained = self._fit(self._job(self.pairs / "pairs.parquet", reference, doubt))
        return {"policy": trained.version, "num_pairs": num_kept, "dropped": dropped, **facts}

    def _on_groups(self, objective: GroupObjective) -> dict[str, Any]:
        """Train on the round's groups."""
        groups = files.read_table(self.pairs / GROUPS_FILE, ResponseGroup)
        usable, dropped = usable_groups(groups, objective)
        job = self._job(self.pairs / GROUPS_FILE, reference_files(self, usable, objective))
        if self.value is not None:
            job = dataclasses.replace(job, values=str(value_files(self, usable, job, self.value)))
        trained = self._fit(job)
        gap = files.read_jsonl(self.folder / "metrics.jsonl")[0]["behaviour_gap"]
        of_this_policy = all(group.policy_version == self.policy.version for group in usable)  # else it says how far that is
        if gap > MAX_BEHAVIOUR_GAP and of_this_policy:
            progress.warn(
                f"the log-probs that responses were sampled with and those of training differ by {gap:.3f} nats a token in the mean; "
                "set train.float32_head or model.dtype=float32"
            )
        return {"policy": trained.version, "num_groups": len(usable), "dropped": dropped, "behaviour_gap": gap}

    def _job(self, pairs: pathlib.Path, reference: pathlib.Path | None, doubt: str = "") -> TrainJob:
        """The training on a file of pairs or groups."""
        return TrainJob(
            model=self.model,
            policy_path=self.policy.path,
            policy_version=self.policy.version,
            train=self.train,
            objective=self.objective,
            plain_prompt=self.plain_prompt,
            frame_spec=self.frame_spec,
            seed=self.seed,
            pairs=str(pairs),
            responses=str(self.responses / "responses.parquet"),
            frames=str(self.frames),
            probe=str(self.responses / "probe.parquet"),
            reference=str(reference) if reference else "",
            doubt=doubt,
            cache=str(self.cache),
            stage=str(self.folder),
            checkpoints=str(self.folder / CHECKPOINTS),
            export=str(self.export),
            tensorboard=self.tensorboard,
        )

    def _fit(self, job: TrainJob) -> PolicyVersion:
        """Train; the exported policy."""
        import ray.train
        from ray.train.torch import TorchTrainer

        workers, use_gpu, is_elastic = self.workers, self.workers.gpus > 0, self.train.is_elastic
        place = stored.of(self.folder)
        store, kept_in = (None, str(self.folder)) if place is None else place.stored
        trainer = TorchTrainer(
            train_loop,
            train_loop_config=job.to_dict(),
            scaling_config=ray.train.ScalingConfig(
                num_workers=(self.train.fewest_workers, self.train.most_workers) if is_elastic else workers.num,
                elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                name=CHECKPOINTS,
                storage_path=kept_in,
                storage_filesystem=store,
                failure_config=ray.train.FailureConfig(
                    max_failures=self.train.max_failures,
                    controller_failure_limit=MAX_RANK_STARTS + times_asked_anew() if is_elastic else MAX_LOST_CONTROLLERS,
                ),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=self.train.num_checkpoints_kept),
            ),
        )

        def fit() -> Any:
            leave_out_torn(self.folder / CHECKPOINTS, progress.warn)
            return trainer.fit()

        with progress.follow_steps(self.round_index, self.folder), ranks_asked_for_anew(is_elastic):
            # In the main thread, Ray Train would take over Ctrl-C for good.
            fit_again(lambda: interrupts.beside(fit), progress.warn)
        mirror.refresh(self.folder)
        mirror.refresh(self.export)
        trained = exported(self.export)
        if not self.train.keep_checkpoints:
            mirror.remove(self.folder / CHECKPOINTS)
        return trained


def fit_again(fit: Callable[[], Any], warn: Callable[[str], None]) -> Any:
    """`fit()`, called again where the actor that controls a training died, or failed because a node of its ranks did: it goes on from
    the newest checkpoint.

    Raises:
        ClusterError: it died more than `MAX_LOST_CONTROLLERS` times.
    """
    import ray.exceptions
    import ray.train

    for number in range(1, MAX_LOST_CONTROLLERS + 2):
        try:
            return fit()
        except (ray.exceptions.RayActorError, ray.train.ControllerError) as error:
            cause = getattr(error, "controller_failure", error)
            if not isinstance(cause, ray.exceptions.RayActorError):
                raise
            reason = " ".join(str(cause).split())[:200]
            if number > MAX_LOST_CONTROLLERS:
                raise ClusterError(
                    f"the training's controller died {number} times ({reason}); look at the memory of the driver's node and run the "
                    "same command again: it continues from its newest checkpoint"
                ) from error
            warn(f"the training's controller died ({reason}); the training continues from its newest checkpoint")
            placement.release_left()
    raise AssertionError


def win_rate_facts(pairs: Sequence[PreferencePair], objective: AnyObjective) -> dict[str, Any]:
    """For an objective that takes win rates, how many pairs bring theirs and how many take the hard case; else nothing."""
    if not objective.takes_win_rates:
        return {}
    hard = sum(math.isnan(pair.chosen_win_rate) or math.isnan(pair.rejected_win_rate) for pair in pairs)
    return {"win_rates": {"estimated": len(pairs) - hard, "hard": hard}}


def exported(folder: pathlib.Path) -> PolicyVersion:
    """The policy version in an export folder. Raises `ModelError` when the export is not complete."""
    card = read_card(folder)
    if card is None:
        return policy_version(folder)
    return PolicyVersion(version=card["version"], path=str(folder.absolute()), parent=card["parent"])
