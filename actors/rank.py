"""One rank's DeepSpeed engine: log-probs of a batch, backward, step, checkpoint. All ranks must make the same calls."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from actors import resharding, sharding
from vidalign.config.training import TrainConfig
from vidalign.learning.schedule import learning_rate_factor
from vidalign.model.batch import IGNORED, Batch
from vidalign.model.checkpoint import gathered
from vidalign.model.logps import CHUNK_SIZE, RowLogps
from vidalign.model.policy import ResponseScorer, prepare_training
from vidalign.model.sequence_parallel import shards_of
from vidalign.model.tensor_cache import read_tensors, write_tensors
from vidalign.model.training_memory import accumulates, bucket_elements
from vidalign.model.value_head import ValueScorer, write_head

TAG = "state"  # the folder of a checkpoint that DeepSpeed writes into


class Rank:
    """Holds the engine. `index` is this rank's position among `count` ranks that take groups of their own.

    Where ranks share each forward pass (`train.sequence_parallel`), they have the same `index`, and one of them `leads`; `is_first` is
    true on one rank of all.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        train: TrainConfig,
        *,
        dtype: str,
        num_steps: int,
        packed: bool,
        compares: bool,
        device: torch.device,
        squares: bool = False,
        valued: bool = False,
        chunk_size: int = CHUNK_SIZE,
    ) -> None:
        """`packed`, `compares`, `squares` and `chunk_size`: see `vidalign.model.policy.ResponseScorer`.

        `valued`: train a value model (`vidalign.model.value_head`); log-probs are then values.
        """
        import deepspeed

        self._shards = shards_of(train.sequence_parallel)
        self.index, self.count = place_of(train.sequence_parallel)
        self.leads, self.is_first = self._shards is None or self._shards.index == 0, dist.get_rank() == 0
        self.device, self._dtype = device, getattr(torch, dtype)
        self._calls_gather = train.zero_stage == 3 and dist.get_world_size() > 1
        kind = ValueScorer if valued else ResponseScorer
        scorer = kind(
            prepare_training(model, train),
            packed=packed,
            compares=compares,
            float32_head=train.float32_head,
            squares=squares,
            chunk_size=chunk_size,
            shards=self._shards,
        )
        num_trainable = sum(parameter.numel() for parameter in scorer.parameters() if parameter.requires_grad)
        config = deepspeed_config(
            train, dtype, num_workers=dist.get_world_size(), device=device, num_trainable=num_trainable
        )
        # DeepSpeed's shared-memory all-reduce for inference on CPUs is never used in training. Compiling it takes most of a minute
        # at the first start and needs a C++ compiler, and a process killed in the middle leaves a lock that all later ones wait for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False)
        if self._calls_gather:
            sharding.shard(scorer, config, dtype=self._dtype, device=device)
        self._engine, *_ = deepspeed.initialize(
            model=scorer,
            model_parameters=[p for p in scorer.parameters() if p.requires_grad],
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer,
                lambda step: learning_rate_factor(step, num_steps, train.warmup_ratio, train.schedule),
            ),
            config=config,
        )

    @property
    def model(self) -> Any:
        """The module that is trained, for `vidalign.model.checkpoint.export_policy`."""
        return self._engine.module.model

    def write_head(self, folder: pathlib.Path) -> None:
        """Write the value head that is trained beside its model's folder. Collective."""
        head = self._engine.module.value_head
        with gathered(list(head.parameters())) if self._calls_gather else contextlib.nullcontext():
            if self.is_first:
                write_head(head, folder)

    @property
    def learning_rate(self) -> float | None:
        """The current learning rate, if there is a schedule."""
        scheduler = self._engine.lr_scheduler
        return scheduler.get_last_lr()[0] if scheduler is not None else None

    def train(self, mode: bool = True) -> None:
        """Switch the model to training mode, or to evaluation mode."""
        self._engine.train(mode)

    def logps(self, batch: Batch, reference_hidden: torch.Tensor | None = None) -> RowLogps:
        """Log-probs of the responses of a batch; with the reference's hidden states of the first rows, the KL of those too.

        Collective under ZeRO stage 3: all ranks call the model's modules equally often, whatever their batches hold.
        """
        return self.outputs(batch, reference_hidden)[0]

    def outputs(self, batch: Batch, reference_hidden: torch.Tensor | None = None) -> tuple[RowLogps, torch.Tensor]:
        """What `logps` returns, and the final hidden states [N, D] that predict the N response tokens. As collective as `logps`."""
        calls = (0, 0)
        if self._calls_gather:
            for_logps, for_kl = self._engine.module.num_calls(batch.labels, reference_hidden)
            calls = self.largest(for_logps), self.largest(for_kl)
        batch = batch.to(self.device, self._dtype)
        if reference_hidden is not None:
            reference_hidden = reference_hidden.to(self.device)
        logps, kl, hidden, *squares = self._engine(batch.inputs, batch.labels, reference_hidden, batch.sources, calls)
        rows = RowLogps(logps=logps, mask=batch.labels != IGNORED, kl=kl, squares=squares[0] if squares else None)
        return rows, hidden

    def backward(self, value: torch.Tensor, *, last: bool) -> None:
        """Add to the gradients; `last` marks the last call of an optimizer step."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(value)

    def step(self) -> None:
        """Update the weights and the learning rate."""
        self._engine.step()

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last step's gradient; None at ZeRO stage 0, where DeepSpeed does not provide it."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def add_up(self, *values: torch.Tensor) -> None:
        """Replace each tensor by its sum over all ranks that take groups of their own."""
        for value in values:
            dist.all_reduce(value)
            if self._shards is not None:
                value /= self._shards.count

    def wait(self) -> None:
        """Return once all ranks have come here."""
        dist.barrier()

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    def save(self, folder: str | pathlib.Path, state: dict[str, Any]) -> None:
        """Write model, optimizer, scheduler and this rank's random state into a folder that a node's ranks share, with `state`."""
        self._engine.save_checkpoint(str(folder), tag=TAG, client_state=state, exclude_frozen_parameters=True)
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(self.device)
        write_tensors(self._random(folder), random)
        self.wait()

    def load(self, folder: str | pathlib.Path, *, leads: bool | None = None) -> dict[str, Any]:
        """Continue from what `save` wrote, of any number of ranks; returns its `state`. Collective.

        `leads`: whether this rank writes into the folder for those that share it; None: rank 0, for all.
        """
        state = resharding.load(self._engine, pathlib.Path(folder), TAG, leads=self.is_first if leads is None else leads)
        if self._random(folder).is_file():  # an older checkpoint has rank 0's in its state
            random = read_tensors(self._random(folder))
            torch.set_rng_state(random["cpu"])
            if self.device.type == "cuda" and "cuda" in random:
                torch.cuda.set_rng_state(random["cuda"], self.device)
        return state

    def _random(self, folder: str | pathlib.Path) -> pathlib.Path:
        return pathlib.Path(folder) / f"random-{dist.get_rank()}.safetensors"


def place_of(sequence_parallel: int) -> tuple[int, int]:
    """(index, count) of this process among ranks that take groups of their own."""
    return dist.get_rank() // sequence_parallel, dist.get_world_size() // sequence_parallel


def deepspeed_config(
    train: TrainConfig, dtype: str, *, num_workers: int, device: torch.device, num_trainable: int
) -> dict[str, Any]:
    """The DeepSpeed configuration of a training job, with `train.deepspeed` merged in last.

    The learner itself accumulates gradients over forward passes: in float32, where there is more than one of them. Buckets of
    gradients are no larger than the gradients: an adapter's are small, and DeepSpeed allocates one or two buckets on one rank too.
    """
    zero: dict[str, Any] = {"stage": train.zero_stage, "overlap_comm": device.type == "cuda"}
    if train.zero_stage > 0:
        zero["reduce_bucket_size"] = bucket_elements(train, num_trainable)
    adam: dict[str, Any] = {"lr": train.learning_rate, "weight_decay": train.weight_decay}
    offloaded = (train.deepspeed.get("zero_optimization") or {}).get("offload_optimizer")
    if not (
        offloaded and offloaded.get("device", "none") != "none"
    ):  # DeepSpeed has an Adam of its own for states on the host
        adam["torch_adam"] = True
        if device.type == "cuda":
            adam["fused"] = True
    per_worker = max(1, train.batch_size // num_workers)  # of its own books: the learner cuts batches itself
    mixed = dtype != "float32" and train.zero_stage > 0 and accumulates(train)
    config = {
        "train_batch_size": per_worker * num_workers,
        "train_micro_batch_size_per_gpu": per_worker,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": adam,
        },
        "zero_optimization": zero,
        **({"data_types": {"grad_accum_dtype": "fp32"}} if mixed else {}),
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return merged(config, train.deepspeed)


def merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration in which the values of `changes` replace others or are added."""
    both = dict(config)
    for name, value in changes.items():
        inside = both.get(name)
        both[name] = merged(inside, value) if isinstance(inside, dict) and isinstance(value, Mapping) else value
    return both
