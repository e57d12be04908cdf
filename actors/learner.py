"""One DeepSpeed rank under Ray Train: pairs ─► objective ─► checkpoints ─► an exported policy.

    train_loop (Ray Train calls it on every rank)
      Learner.restore     newest checkpoint of this run, if there is one
      Learner.step        accumulate micro-batches of one global batch, one optimizer step
      Learner.measure     displacement on fixed pairs and on the probe set, every `log_every` steps
      Learner.checkpoint  model, optimizer, scheduler, data position, RNG, step-0 figures
      export              complete Hugging Face folder, written by rank 0

The order of the pairs is a function of the seed alone, so the data position is the step number and a resumed job sees what an
uninterrupted one would.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from actors.metrics_log import MetricsLog
from actors.train_job import TrainJob
from vidalign import files
from vidalign.config.run import TrainConfig
from vidalign.learning import displacement, objectives
from vidalign.learning.pair_data import PairSource, batch_order, pack, split_further, usable_pairs
from vidalign.learning.schedule import learning_rate_factor
from vidalign.model import shared_prefix, vision_features
from vidalign.model.batch import IGNORED, Batch
from vidalign.model.checkpoint import export_policy
from vidalign.model.logps import PairLogps, pad_to_mask
from vidalign.model.policy import ResponseScorer, add_adapter, load_policy, set_trainable
from vidalign.model.rendering import cached_processor
from vidalign.model.tensor_cache import TensorCache, missing, read_tensors
from vidalign.types import Example, PreferencePair

LOG_NAMES = {"chosen": "chosen_logp", "rejected": "rejected_logp", "truth": "truth_logp"}


def train_loop(config: dict[str, Any]) -> None:
    """Ray Train's per-worker function."""
    import ray.train
    import ray.train.torch

    learner = Learner(TrainJob.from_dict(config), device=ray.train.torch.get_device())
    learner.restore(ray.train.get_checkpoint())
    learner.run(report=ray.train.report)


class Learner:
    """Holds one rank's engine, data and position. Collective calls happen in the same order on every rank."""

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        self.job = job
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.dtype = getattr(torch, job.model.dtype)
        self.objective = objectives.build(job.objective.name, job.objective.params)
        self.objective_state: dict[str, float] = {}
        self.pairs, _ = usable_pairs(files.read_table(pathlib.Path(job.pairs), PreferencePair), self.objective)
        self.doubt: dict[str, float] = files.read_json(pathlib.Path(job.doubt)) if job.doubt else {}
        if job.doubt:
            self.pairs = [pair for pair in self.pairs if pair.id in self.doubt]
        self.probe = files.read_table(pathlib.Path(job.probe), Example)
        self.reference: dict[str, str] = files.read_json(pathlib.Path(job.reference)) if job.reference else {}
        torch.manual_seed(job.seed)
        model = load_policy(job.model, job.policy_path)
        packed = shared_prefix.wanted(model, job.train.shared_prefix)
        self.source = PairSource(
            pairs=self.pairs,
            frames=files.read_json(pathlib.Path(job.frames)),
            processor=cached_processor(job.policy_path, job.model.trust_remote_code),
            plain_prompt=job.plain_prompt,
            max_model_len=job.model.max_model_len,
            number=shared_prefix.numbering(model) if packed else None,
        )
        if job.train.cache_vision_features:
            self.source = self._with_features(model)
        self.order = batch_order(len(self.pairs), job.train.batch_size, job.train.num_epochs, job.seed)
        self.two_sided = all(pair.rejected for pair in self.pairs)
        self.monitored = np.arange(min(len(self.pairs), job.train.num_monitored))
        self.step_index = 0
        self.start: dict[str, list[float]] = {}
        self.window: list[float] = []
        self.engine = self._deepspeed_engine(model, packed)
        self.log = MetricsLog(pathlib.Path(job.stage)) if self.rank == 0 else None

    def run(self, report: Any) -> None:
        """Train to the end, then export."""
        train, num_steps = self.job.train, len(self.order)
        if self.log:
            self.log.rewind(self.step_index)
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
            if last or self.step_index % train.checkpoint_every == 0:
                self.checkpoint(report)
        export_policy(
            self.engine.module.model,
            pathlib.Path(self.job.export),
            base=self.job.policy_path,
            parent=self.job.policy_version,
            frame_spec=self.job.frame_spec,
            prompt=self.job.plain_prompt,
            zero_stage=train.zero_stage,
            trust_remote_code=self.job.model.trust_remote_code,
        )

    def step(self, indices: np.ndarray) -> tuple[float, float | None, dict[str, float]]:
        """One optimizer step on a global batch of pairs: (loss, gradient norm, objective metrics), means over the batch.

        DeepSpeed does not tell the gradient norm at ZeRO stage 0: None.
        """
        micro_batches = self._micro_batches(indices[self.rank :: self.world_size])
        share = len(micro_batches) * self.world_size
        tokens = self.source.num_chosen_tokens(list(indices))
        total = torch.zeros((), device=self.device)
        metrics: dict[str, torch.Tensor] = {}
        statistics: dict[str, torch.Tensor] = {}
        self.engine.train()
        for number, micro in enumerate(micro_batches, 1):
            policy = self._pair_logps(micro, for_loss=True)
            loss = self.objective(
                policy,
                self._reference_logps(micro, policy),
                num_pairs=len(indices) / share,
                num_chosen_tokens=tokens / share,
                state=self.objective_state,
            )
            self.engine.set_gradient_accumulation_boundary(number == len(micro_batches))
            self.engine.backward(loss.value / len(micro_batches))
            total += loss.value.detach() / share
            for name, value in loss.metrics.items():
                weighted = value.float() * len(micro) / len(indices)  # a forward's mean counts by its pairs
                metrics[name] = metrics.get(name, torch.zeros((), device=self.device)) + weighted
            for name, value in loss.statistics.items():
                statistics[name] = statistics.get(name, torch.zeros_like(value)) + value
        self.engine.step()
        for value in (total, *metrics.values(), *statistics.values()):
            dist.all_reduce(value)
        self.objective_state = self.objective.next_state(self.objective_state, statistics)
        grad_norm = self.engine.get_global_grad_norm()
        return (
            float(total),
            None if grad_norm is None else float(grad_norm),
            {name: float(value) for name, value in metrics.items()},
        )

    def _with_features(self, model: Any) -> PairSource:
        """The pairs with features in place of pixels; every rank computes those of its share of the videos first."""
        cache = TensorCache(pathlib.Path(self.job.cache) / "vision")
        vision_features.check(model)
        tower = vision_features.tower_hash(model, self.source.processor)
        rows: list[PreferencePair | Example] = [*self.pairs, *self.probe]
        clips = sorted({self.source.frames[row.video] for row in rows})
        kept = {clip: vision_features.path(cache, tower, clip) for clip in clips}
        todo = missing(kept).intersection(clips[self.rank :: self.world_size])
        shown = self.source.rendered(row for row in rows if self.source.frames[row.video] in todo)
        videos = ((prompt, kept[clip]) for prompt, clip in shown)
        vision_features.compute(model, videos, self.device, self.dtype)
        dist.barrier()
        return dataclasses.replace(self.source, features=kept)

    def _micro_batches(self, own: np.ndarray) -> list[np.ndarray]:
        """This rank's pairs of one optimizer step, forward by forward; equally many forwards on every rank."""
        train = self.job.train
        if train.tokens_per_micro_batch is None:
            return list(own.reshape(-1, train.micro_batch_size))
        lengths = [self.source.num_tokens(index, rejected=self.objective.needs_rejected) for index in own]
        bins = pack(lengths, train.tokens_per_micro_batch)
        most = torch.tensor(len(bins), device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return [own[rows] for rows in split_further(bins, int(most))]

    @torch.no_grad()
    def measure(self, loss: float | None, grad_norm: float | None) -> None:
        """Average log-likelihoods of fixed training pairs and of the probe's ground truths, against step 0."""
        self.engine.eval()
        sides = ("chosen", "rejected") if self.two_sided else ("chosen",)
        pairs = self._spread(len(self.monitored), len(sides), lambda rows: self._pair_averages(self.monitored[rows]))
        truth = self._spread(len(self.probe), 1, self._truth_averages)
        now = {name: pairs[:, column].tolist() for column, name in enumerate(sides)} | {"truth": truth[:, 0].tolist()}
        if self.step_index == 0:
            self.start = now
        if self.two_sided:
            figures = displacement.displacement(
                chosen_start=self.start["chosen"],
                rejected_start=self.start["rejected"],
                chosen=now["chosen"],
                rejected=now["rejected"],
            )
        else:
            figures = displacement.side_displacement("chosen", self.start["chosen"], now["chosen"])
        if self.probe:
            figures |= displacement.side_displacement("truth", self.start["truth"], now["truth"])
        if self.log:
            scheduler = self.engine.lr_scheduler
            self.log.measurement(
                {
                    "step": self.step_index,
                    "epoch": self.step_index * self.job.train.batch_size / max(1, len(self.pairs)),
                    "loss": loss,
                    "grad_norm": grad_norm,
                    "learning_rate": scheduler.get_last_lr()[0] if scheduler is not None else None,
                    **{LOG_NAMES.get(name, name): value for name, value in figures.items()},
                }
            )

    def checkpoint(self, report: Any) -> None:
        """Write and report a checkpoint from which `restore` continues exactly."""
        from ray.train import Checkpoint

        state = {
            "step_index": self.step_index,
            "start": self.start,
            "window": self.window,
            "objective_state": self.objective_state,
            "torch_rng": torch.get_rng_state(),
        }
        with tempfile.TemporaryDirectory(prefix="vidalign-checkpoint-") as folder:
            self.engine.save_checkpoint(folder, tag="state", client_state=state, exclude_frozen_parameters=True)
            report(
                {"step": self.step_index, "num_steps": len(self.order)},
                checkpoint=Checkpoint.from_directory(folder),
                checkpoint_dir_name=f"step-{self.step_index:06d}-{time.time_ns() // 1_000_000}"
                if self.world_size == 1
                else None,
            )

    def restore(self, checkpoint: Any) -> None:
        """Continue from a checkpoint; None starts at step 0."""
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            _, state = self.engine.load_checkpoint(folder, tag="state", load_module_strict=False)
        self.step_index = state["step_index"]
        self.start = state["start"]
        self.window = state["window"]
        self.objective_state = state["objective_state"]
        torch.set_rng_state(state["torch_rng"])

    def _deepspeed_engine(self, model: torch.nn.Module, packed: bool) -> Any:
        import deepspeed

        train = self.job.train
        if train.lora is not None:
            model = add_adapter(model, train)
        else:
            set_trainable(model, vision_tower=train.train_vision_tower, projector=train.train_projector)
        if train.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            model.enable_input_require_grads()  # type: ignore[operator]
        # Its shared-memory all-reduce for inference on CPUs is never used in training; compiling it takes most of a minute at
        # the first start, needs a C++ compiler, and a process killed meanwhile leaves a lock that all later ones wait for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False)
        num_steps = len(self.order)
        engine, *_ = deepspeed.initialize(
            model=ResponseScorer(model, packed=packed, compares=self.objective.needs_kl),
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda step: learning_rate_factor(step, num_steps, train.warmup_ratio, train.schedule),
            ),
            config=deepspeed_config(train, self.job.model.dtype, num_workers=self.world_size),
        )
        return engine

    def _logps(self, batch: Batch, hidden: torch.Tensor | None = None) -> tuple[Any, ...]:
        batch = batch.to(self.device, self.dtype)
        if hidden is not None:
            hidden = hidden.to(self.device)
        return *self.engine(batch.inputs, batch.labels, hidden, batch.sources), batch.labels != IGNORED

    def _pair_logps(self, indices: np.ndarray, *, for_loss: bool = False) -> PairLogps:
        """Both sides of these pairs; with what the objective asks for beside them, or without its unneeded side, `for_loss`."""
        objective, half = self.objective, len(indices)
        with_kl = for_loss and objective.needs_kl
        both = objective.needs_rejected if for_loss else self.two_sided
        hidden = None
        if with_kl:
            hidden = torch.cat([self._kept(index)["hidden"] for index in indices])
        logps, kl, mask = self._logps(self.source.batch(list(indices), rejected=both, keep=not for_loss), hidden)
        extra: dict[str, Any] = {"chosen_kl": kl[:half]} if with_kl else {}
        if for_loss and self.doubt:
            extra["doubt"] = torch.tensor([self.doubt[self.pairs[index].id] for index in indices], device=self.device)
        if for_loss and objective.needs_phrases:
            chosen, rejected = self.source.phrases(list(indices))
            extra |= {
                "chosen_phrases": _scatter(chosen, mask[:half]).long(),
                "rejected_phrases": _scatter(rejected, mask[half:]).long(),
            }
        return PairLogps(
            chosen=logps[:half],
            rejected=logps[half:] if both else logps.new_zeros((half, 0)),
            chosen_mask=mask[:half],
            rejected_mask=mask[half:] if both else mask.new_zeros((half, 0)),
            **extra,
        )

    def _reference_logps(self, indices: np.ndarray, policy: PairLogps) -> PairLogps | None:
        if not self.objective.needs_reference:
            return None
        rows = [self._kept(index) for index in indices]
        return PairLogps(
            chosen=pad_to_mask(torch.cat([row["chosen"] for row in rows]).to(self.device), policy.chosen_mask),
            rejected=pad_to_mask(torch.cat([row["rejected"] for row in rows]).to(self.device), policy.rejected_mask),
            chosen_mask=policy.chosen_mask,
            rejected_mask=policy.rejected_mask,
        )

    def _kept(self, index: int) -> dict[str, torch.Tensor]:
        """What the reference says of a pair, see `actors.reference.Reference`."""
        return read_tensors(self.reference[self.pairs[index].id])

    def _pair_averages(self, indices: np.ndarray) -> torch.Tensor:  # [n, 2], or [n, 1] without rejected responses
        policy = self._pair_logps(indices)
        sides = [policy.chosen_avg, policy.rejected_avg] if self.two_sided else [policy.chosen_avg]
        return torch.stack(sides, dim=1)

    def _truth_averages(self, indices: np.ndarray) -> torch.Tensor:  # [n, 1]
        logps, _, mask = self._logps(self.source.truth_batch([self.probe[index] for index in indices], keep=True))
        return (logps.sum(-1) / mask.sum(-1))[:, None]

    def _spread(self, count: int, width: int, measure: Any) -> torch.Tensor:
        """Measure rows 0..count over all ranks with equally many forwards on each; [count, width] on every rank, on the CPU."""
        table = torch.zeros((count, width), device=self.device)
        size = max(1, self.job.train.micro_batch_size)
        stride = size * self.world_size
        for first in range(0, count, stride):
            rows = np.arange(first + self.rank * size, first + (self.rank + 1) * size)
            inside = rows < count
            values = measure(np.where(inside, rows, 0))
            keep = torch.as_tensor(inside, device=self.device)
            table[torch.as_tensor(rows[inside], device=self.device)] = values[keep].float()
        dist.all_reduce(table)
        return table.cpu()


def deepspeed_config(train: TrainConfig, dtype: str, *, num_workers: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a training job; `Learner.step` accumulates gradients itself, forward by forward."""
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // num_workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": train.learning_rate, "weight_decay": train.weight_decay, "torch_adam": True},
        },
        "zero_optimization": {"stage": train.zero_stage},
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _scatter(rows: Sequence[Sequence[float]], mask: torch.Tensor) -> torch.Tensor:
    flat = torch.tensor([value for row in rows for value in row], dtype=torch.float32, device=mask.device)
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_scatter(mask, flat)
