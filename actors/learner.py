"""The loop of one DeepSpeed rank under Ray Train: groups of responses ─► objective ─► checkpoints ─► an exported policy.

    train_loop (Ray Train calls it on every rank)
      Learner.restore     newest checkpoint of this run, if there is one
      Learner.step        accumulate the micro-batches of one global batch, then one optimizer step
      Learner.measure     displacement on fixed pairs and on the probe set, every `log_every` steps
      Learner.checkpoint  model, optimizer, scheduler, data position, RNG, step-0 figures
      export              complete Hugging Face folder, written by rank 0

    training_data.py  what is learned from   rank.py  the engine   monitor.py  displacement   metrics_log.py  what is recorded
    checkpoints.py  when and where they are written   resharding.py  those of another number of ranks
    vidalign/learning/ahead.py  the thread that renders the next batch

The order of the groups depends only on the seed, so the data position is the step number, and a resumed job sees the same data as
an uninterrupted one.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from actors import sharding
from actors.checkpoints import Checkpoints, leads_here, preemption_notice
from actors.metrics_log import MetricsLog
from actors.monitor import Monitor, ValueMonitor
from actors.rank import Rank, place_of
from actors.reference import parts_of, write_missing
from actors.train_job import TrainJob
from actors.training_data import TrainingData, batch_source, with_features
from vidalign.learning import objectives
from vidalign.learning.ahead import Renderer
from vidalign.learning.batches import batch_order, first_of, micro_batches, spread
from vidalign.learning.sequences import TrainingGroup
from vidalign.learning.views import view_of
from vidalign.model import sequence_parallel, shared_prefix, vision_features
from vidalign.model.checkpoint import export_policy
from vidalign.model.tensor_cache import TensorCache


def train_loop(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    import ray.train
    import ray.train.torch

    learner = Learner(TrainJob.from_dict(config), device=ray.train.torch.get_device())
    learner.restore(ray.train.get_checkpoint())
    learner.run(report=ray.train.report, notice=preemption_notice)


class Learner:
    """Holds one rank's engine, data and position. Collective calls happen in the same order on every rank."""

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        """Raises `ConfigError` if the objective consumes what training cannot give it."""
        self.job = job = job.staged()
        train = job.train
        self.objective = objectives.build(job.objective.name, job.objective.params)
        self.objective_state: dict[str, float] = {}
        view = view_of(self.objective)
        self.data = TrainingData.read(job, self.objective)
        torch.manual_seed(job.seed)
        model = sharding.load_model(job, device)
        packed = shared_prefix.wanted(model, train.shared_prefix)
        sequence_parallel.check(model, train.sequence_parallel, packed=packed)
        self.source = batch_source(job, model, packed=packed)
        if train.cache_vision_features:
            cache, dtype = TensorCache(pathlib.Path(job.cache) / "vision"), getattr(torch, job.model.dtype)
            groups = [*self.data.groups, *self.data.probe]
            if train.zero_stage == 3:
                sharding.send(vision_features.modules(model), model, device)
            self.source = with_features(self.source, groups, model, cache, device=device, dtype=dtype)
        self.renderer = Renderer(self.source, device=device, dtype=getattr(torch, job.model.dtype))
        self.view = view(objective=self.objective, source=self.source, kept=self.data.kept, doubt=self.data.doubt)
        self.order = batch_order(len(self.data.groups), train.batch_size, train.num_epochs, job.seed)
        self.step_index = 0
        self.window: list[float] = []
        self.valued = self.objective.learns == "value"
        watched, probe = self._measured()
        self._prepare_start(watched, probe)
        self.rank = Rank(
            model,
            train,
            dtype=job.model.dtype,
            num_steps=len(self.order),
            packed=packed,
            compares=self.objective.needs_kl,
            squares=self.objective.needs_squares,
            valued=self.valued,
            device=device,
        )
        self.checkpoints = Checkpoints(self.rank, train, pathlib.Path(job.checkpoints))
        self.log = MetricsLog(pathlib.Path(job.stage), board=job.tensorboard) if self.rank.is_first else None
        self.refer()
        kind = ValueMonitor if self.valued else Monitor
        self.monitor = kind(self.rank, self.renderer, pairs=watched, probe=probe, size=train.micro_batch_size)

    def _measured(self) -> tuple[Sequence[TrainingGroup], Sequence[TrainingGroup]]:
        """What is measured again and again: pairs, or responses, and the ground truths of the probe."""
        num_pairs, num_probed = self.job.train.num_monitored, self.job.train.num_probed
        if self.valued:
            return self.data.heldout[:num_pairs], ()
        return self.data.watched[:num_pairs], self.data.probe[:num_probed]

    def refer(self) -> None:
        """Compute what is missing of the reference's outputs, while the weights are still the reference's. Collective."""
        if not self.data.reference:
            return
        train = self.job.train
        write_missing(
            self.rank,
            self.renderer,
            self.data.groups,
            self.data.reference,
            parts=parts_of(hidden=self.objective.needs_kl, features=train.uncertainty is not None),
            size=train.micro_batch_size,
            done=functools.partial(self.log.progress, "reference") if self.log else None,
        )

    def run(self, report: Any, notice: Callable[[], Any] = lambda: None) -> None:
        """Train to the end, then export. `notice`: see `Checkpoints.are_due`; asked after each step."""
        try:
            self.train(report, notice)
            if self.valued:
                heldout, size = self.data.heldout, self.job.train.micro_batch_size
                ValueMonitor(self.rank, self.renderer, pairs=heldout, size=size).write(pathlib.Path(self.job.stage))
        finally:
            self.renderer.close()
        if self.log:
            self.log.put()
        self._export()

    def train(self, report: Any, notice: Callable[[], Any] = lambda: None) -> None:
        """All steps that are left, with their measurements and checkpoints. Collective."""
        train, num_steps = self.job.train, len(self.order)
        if self.log:
            self.log.rewind(self.step_index)
        self._prepare(self.step_index)
        if self.step_index == 0:
            self.measure(loss=None, grad_norm=None)
        while self.step_index < num_steps:
            loss, grad_norm, metrics = self.step(self.order[self.step_index])
            self.step_index += 1
            self.window.append(loss)
            if self.log:
                self.log.step(self.step_index, num_steps, {"loss": loss, "grad_norm": grad_norm, **metrics})
            last = self.step_index == num_steps
            if last or self.step_index % train.log_every == 0:
                self.measure(loss=float(np.mean(self.window)), grad_norm=grad_norm)
                self.window = []
            if self.checkpoints.are_due(self.step_index, notice()) and not last:  # the export follows the last step
                self.checkpoint(report)

    def _export(self) -> None:
        train = self.job.train
        if self.valued:
            self.rank.write_head(pathlib.Path(self.job.export).parent)  # before the model's card, which is written last
        export_policy(
            self.rank.model,
            pathlib.Path(self.job.export),
            base=self.job.policy_path,
            parent=self.job.policy_version,
            frame_spec=self.job.frame_spec,
            prompt=self.job.plain_prompt,
            zero_stage=train.zero_stage,
            keep_adapter=train.lora is not None and train.lora.export == "both",
            trust_remote_code=self.job.model.trust_remote_code,
        )

    def step(self, indices: np.ndarray) -> tuple[float, float | None, dict[str, float]]:
        """One optimizer step on a global batch of groups: (loss, gradient norm, objective metrics), means over the batch.

        The gradient norm is None if DeepSpeed does not provide it. Collective.
        """
        forwards, num_real = self._forwards(indices)
        sequences = [[self.view.sequences(self.data.groups[index]) for index in micro] for micro in forwards]
        batches = self.renderer.batches(sequences)
        self._prepare(self.step_index + 1)
        share = len(forwards) * self.rank.count
        totals = self.view.denominators([self.data.groups[index] for index in indices])
        total = torch.zeros((), device=self.rank.device)
        metrics: dict[str, torch.Tensor] = {}
        statistics: dict[str, torch.Tensor] = {}
        self.rank.train()
        for number, (micro, batch) in enumerate(zip(forwards, batches, strict=True), 1):
            counts = number <= num_real
            groups = [self.data.groups[index] for index in micro]
            rows = self.rank.logps(batch, self.view.reference_hidden(groups))
            loss = self.objective(
                self.view.policy(rows, groups),
                self.view.reference(rows, groups),
                **{name: value / share for name, value in totals.items()},
                state=self.objective_state,
            )
            self.rank.backward(loss.value / len(forwards) * counts, last=number == len(forwards))
            total += loss.value.detach() / share * counts
            for name, value in loss.metrics.items():
                # A forward pass's mean counts by its number of groups.
                weighted = value.float() * counts * len(micro) / len(indices)
                metrics[name] = metrics.get(name, torch.zeros((), device=self.rank.device)) + weighted
            for name, value in loss.statistics.items():
                statistics[name] = statistics.get(name, torch.zeros_like(value)) + value * counts
        self.rank.step()
        self.rank.add_up(total, *metrics.values(), *statistics.values())
        self.objective_state = self.objective.next_state(self.objective_state, statistics)
        return float(total), self.rank.grad_norm, {name: float(value) for name, value in metrics.items()}

    def _own(self, indices: np.ndarray) -> np.ndarray:
        """This rank's groups of an optimizer step: one fewer than others' where the number of ranks does not divide the batch."""
        return indices[self.rank.index :: self.rank.count]

    def _prepare_start(self, watched: Sequence[TrainingGroup], probe: Sequence[TrainingGroup]) -> None:
        """Let the prompts that a new training takes first be rendered while DeepSpeed starts: those that it measures."""
        place = max(1, self.job.train.micro_batch_size), *place_of(self.job.train.sequence_parallel)
        self.renderer.prepare(
            [
                groups[index]
                for groups in (watched, probe)
                for indices, inside in spread(len(groups), *place)
                for index in indices[inside]
            ]
        )

    def _prepare(self, step_index: int) -> None:
        """Let a step's prompts and its first batch be rendered while there is nothing else to render."""
        own = self._own(self.order[step_index]).tolist() if step_index < len(self.order) else []
        train = self.job.train
        self.renderer.prepare(
            [self.view.sequences(self.data.groups[index]) for index in own],
            first=functools.partial(first_of, size=train.micro_batch_size, budget=train.tokens_per_micro_batch),
        )

    def _forwards(self, indices: np.ndarray) -> tuple[list[np.ndarray], int]:
        """This rank's groups of one optimizer step, split into as many forward passes as other ranks'. Collective.

        Returns:
            the groups of each, and how many of them count: those after that stand in for groups that there are too few of.
        """
        own = self._own(indices)
        uneven = len(indices) % self.rank.count != 0
        made = micro_batches(
            own,
            size=self.job.train.micro_batch_size,
            budget=self.job.train.tokens_per_micro_batch,
            num_tokens=lambda rows: self.renderer.num_tokens([self.view.sequences(self.data.groups[row]) for row in rows]),
            largest=self.rank.largest,
            most=-(-len(indices) // self.rank.count),
        )
        num_all = self.rank.largest(len(made)) if uneven else len(made)
        return [*made, *[indices[:1]] * (num_all - len(made))], len(made)

    def measure(self, loss: float | None, grad_norm: float | None) -> None:
        """Measure displacement and record it with loss and progress. Collective."""
        figures = self.monitor.measure(self.step_index)
        if self.log:
            self.log.measurement(
                {
                    "step": self.step_index,
                    "epoch": self.step_index * self.job.train.batch_size / max(1, len(self.data.groups)),
                    "loss": loss,
                    "grad_norm": grad_norm,
                    "learning_rate": self.rank.learning_rate,
                    **figures,
                }
            )

    def checkpoint(self, report: Any) -> None:
        """Write and report a checkpoint from which `restore` continues exactly. Collective."""
        state = {
            "step_index": self.step_index,
            "start": self.monitor.start,
            "window": self.window,
            "objective_state": self.objective_state,
        }
        if self.log:
            self.log.put()
        self.checkpoints.write(state, report, num_steps=len(self.order))

    def restore(self, checkpoint: Any) -> None:
        """Continue from a checkpoint; with None, start at step 0."""
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = self.rank.load(folder, leads=leads_here(checkpoint))
        self.step_index = state["step_index"]
        self.monitor.start = {**state["start"]}
        if "truth" in self.monitor.start:
            self.monitor.start["truth"] = self.monitor.start["truth"][: self.job.train.num_probed]
        self.window = state["window"]
        self.objective_state = state["objective_state"]
        if "torch_rng" in state:  # of checkpoints that hold one random state for all ranks
            torch.set_rng_state(state["torch_rng"])
