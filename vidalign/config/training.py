"""The sections of a configuration that say what training does."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pydantic

from vidalign.config.counts import Count
from vidalign.config.section import PathText, Section


class LoraConfig(Section):
    """Low-rank adapters on the language model's linear layers instead of full fine-tuning (peft).

    `targets` are the last parts of the layers' names, such as ["q_proj", "v_proj"]; null means all linear layers of the language
    model. `export` says what the exported folder holds: complete "merged" weights, which every engine reads, or "both": the
    adapter as peft stores it beside them, in the folder `adapter`. With `quantize`, those layers are kept in 4 bits while the adapter
    is trained (QLoRA, `vidalign/model/quantized.py`).
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"export"})
    LATER: ClassVar[frozenset[str]] = frozenset({"targets", "export", "quantize"})

    rank: int = pydantic.Field(128, ge=1)
    """Rank of the adapters."""
    alpha: int = pydantic.Field(256, ge=1)
    """Scale of the adapters: they are multiplied by alpha / rank."""
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)
    """Dropout of the adapters' inputs."""
    targets: list[str] | None = pydantic.Field(None, min_length=1)
    """Last parts of the names of the layers that get adapters; null means all linear layers of the language model."""
    export: Literal["merged", "both"] = "merged"
    """What the exported folder holds: complete "merged" weights, or "both" those and the adapter."""
    quantize: Literal["4bit"] | None = None
    """Keep the layers below the adapters in 4 bits while training (QLoRA)."""


class UncertaintyConfig(Section):
    """Label smoothing of each pair by its doubt (`vidalign/learning/uncertainty.py`), after UPO.

    A pair's smoothing is the estimated probability that its order is wrong, at most `max_smoothing`; `drop_disagreeing` leaves out
    pairs whose order the heads vote against. `sampled_share` is the share of the pairs left that is drawn for training, half of it
    by certainty and half by doubt; null takes all of them.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"sampled_share"})

    num_passes: int = pydantic.Field(10, ge=2)
    """Passes with dropout from which the doubt of a pair is estimated."""
    dropout: float = pydantic.Field(0.1, gt=0, lt=1)
    """Dropout of these passes."""
    max_smoothing: float = pydantic.Field(0.4, ge=0, lt=0.5)
    """Most label smoothing of a pair."""
    drop_disagreeing: bool = True
    """Leave out pairs whose order most passes vote against."""
    sampled_share: float | None = pydantic.Field(None, gt=0, le=1)
    """Share of the pairs that is drawn for training, half by certainty and half by doubt; null takes all."""


class TrainConfig(Section):
    """The DeepSpeed job. `batch_size` counts pairs (or groups) per optimizer step over all workers.

    A forward pass takes `micro_batch_size` pairs or, with `tokens_per_micro_batch`, as many as fit into that many tokens (a
    longer pair goes alone). `shared_prefix` computes the prompt and video of a pair once for both responses and lays the pairs of
    a forward pass end to end without padding, where the architecture allows it. `cache_vision_features` keeps what a frozen
    vision tower computes for each video on disk, so that the tower runs once per video and not once per epoch or round.
    `cache_dir` is where these features and the reference's outputs are kept, by content; null means the run's folder.
    `float32_head` computes logits in float32 in a model of another type: in rollouts, for the reference and in training.

    With `num_workers` [fewest, most], a training that loses workers goes on with those that are left from its newest checkpoint, and
    takes more once there are nodes for them. Its batches are the same, and its checkpoints are read by any number of workers.

    `sequence_parallel` neighbouring workers share each forward pass, so that a long video takes that much less memory on each.

    `deepspeed` holds options of DeepSpeed's own configuration, merged into ours last: offloading, bucket sizes, hpZ, data types.

    Every `log_every` steps the first `num_monitored` pairs and `num_probed` rows of data.probe are measured: that is their forward
    passes, about a quarter of what as many pairs cost in training with gradient checkpointing.

    A checkpoint is written every `checkpoint_minutes`, and every `checkpoint_every` steps where that is set;
    `num_checkpoints_kept` whole ones are kept. They hold the optimizer's states, so they are removed after the export, unless
    `keep_checkpoints`.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers",
            "use_gpu",
            "micro_batch_size",
            "tokens_per_micro_batch",
            "zero_stage",
            "gradient_checkpointing",
            "shared_prefix",
            "sequence_parallel",
            "cache_vision_features",
            "cache_dir",
            "log_every",
            "num_monitored",
            "num_probed",
            "checkpoint_every",
            "checkpoint_minutes",
            "num_checkpoints_kept",
            "keep_checkpoints",
            "max_failures",
        }
    )
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"float32_head", "deepspeed", "checkpoint_minutes", "keep_checkpoints", "num_probed", "sequence_parallel"}
    )

    num_workers: Count = 1
    """DeepSpeed ranks, each on a GPU of its own where there are any; [fewest, most] goes on with those that there are."""
    use_gpu: bool | None = None
    """Train on GPUs; null does where the cluster has any."""
    learning_rate: float = pydantic.Field(5e-7, gt=0, allow_inf_nan=False)
    """Highest learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate falls after the warm-up."""
    warmup_ratio: float = pydantic.Field(0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    num_epochs: int = pydantic.Field(1, ge=1)
    """Passes over the pairs."""
    batch_size: int = pydantic.Field(16, ge=1)
    """Pairs of one optimizer step, over all workers."""
    micro_batch_size: int = pydantic.Field(1, ge=1)
    """Pairs of one forward pass of one worker."""
    tokens_per_micro_batch: int | None = pydantic.Field(None, ge=1)
    """Fill each forward pass up to this many tokens instead of a fixed number of pairs."""
    weight_decay: float = pydantic.Field(0.0, ge=0, allow_inf_nan=False)
    """Weight decay of AdamW."""
    max_grad_norm: float = pydantic.Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    zero_stage: int = pydantic.Field(2, ge=0, le=3)
    """What DeepSpeed divides over the workers: 1 optimizer states, 2 gradients too, 3 weights too."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    shared_prefix: bool = True
    """Compute prompt and video of a pair once for both responses, where the architecture allows it."""
    sequence_parallel: int = pydantic.Field(1, ge=1)
    """Neighbouring workers that share each forward pass, for long videos."""
    cache_vision_features: bool = False
    """Keep what a frozen vision tower computes on disk, once for each video."""
    cache_dir: PathText | None = None
    """Where features and the reference's outputs are kept, by content; null means the run's folder."""
    float32_head: bool = False
    """Compute logits in float32 in a model of another type, in rollouts too."""
    train_vision_tower: bool = False
    """Train the vision tower too."""
    train_projector: bool = False
    """Train the projector between vision tower and language model too."""
    lora: LoraConfig | None = None
    """Train adapters instead of all weights: `{}` for the defaults."""
    uncertainty: UncertaintyConfig | None = None
    """Smooth labels by the doubt of each pair: `{}` for the defaults."""
    log_every: int = pydantic.Field(5, ge=1)
    """Optimizer steps between two measurements."""
    num_monitored: int = pydantic.Field(64, ge=1)
    """Pairs that are measured."""
    num_probed: int = pydantic.Field(64, ge=1)
    """Rows of `data.probe` that are measured."""
    deepspeed: dict[str, Any] = {}
    """Options of DeepSpeed's own configuration, merged into ours last."""
    checkpoint_every: int | None = pydantic.Field(None, ge=1)
    """Optimizer steps between two checkpoints; null goes by time alone."""
    checkpoint_minutes: float | None = pydantic.Field(10.0, gt=0)
    """Minutes between two checkpoints; null goes by steps alone."""
    num_checkpoints_kept: int = pydantic.Field(1, ge=1)
    """Checkpoints that are kept while training."""
    keep_checkpoints: bool = False
    """Keep checkpoints after the export too."""
    max_failures: int = pydantic.Field(2, ge=-1)
    """How often a training may fail and go on from its newest checkpoint; -1 is without end."""

    @pydantic.model_validator(mode="after")
    def _workers_may_come_and_go(self) -> TrainConfig:
        fewest, most = self.fewest_workers, self.most_workers
        if self.is_elastic and self.sequence_parallel > 1:
            raise ValueError(
                f"num_workers=[{fewest}, {most}] may become any number between, which sequence_parallel={self.sequence_parallel} need "
                f"not divide; set num_workers to {most}, or sequence_parallel to 1"
            )
        zero = self.deepspeed.get("zero_optimization") or {}
        if self.is_elastic and "nvme" in [
            (zero.get(name) or {}).get("device") for name in ("offload_optimizer", "offload_param")
        ]:
            raise ValueError(
                f"num_workers=[{fewest}, {most}] may change, and what deepspeed keeps on NVMe is read by the rank that wrote it; set "
                f"num_workers to {most}, or offload to the device cpu"
            )
        return self

    @property
    def fewest_workers(self) -> int:
        """With how many workers training still runs."""
        return self.num_workers[0] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def most_workers(self) -> int:
        """How many workers there are where no node is missing."""
        return self.num_workers[1] if isinstance(self.num_workers, tuple) else self.num_workers

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while training."""
        return self.fewest_workers != self.most_workers

    @pydantic.model_validator(mode="after")
    def _accumulation_is_whole(self) -> TrainConfig:
        if self.most_workers % self.sequence_parallel:
            raise ValueError(
                f"num_workers must be a multiple of sequence_parallel, got num_workers={self.num_workers} and "
                f"sequence_parallel={self.sequence_parallel}; "
                f"set num_workers to {-(-self.most_workers // self.sequence_parallel) * self.sequence_parallel}, or "
                "sequence_parallel to 1"
            )
        shared = f" / sequence_parallel {self.sequence_parallel}" if self.sequence_parallel > 1 else ""
        per_step = self.micro_batch_size * self.num_readers
        if self.batch_size % per_step:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size x num_workers, got batch_size={self.batch_size} and "
                f"{self.micro_batch_size} x {self.most_workers}{shared} = {per_step}; "
                f"set batch_size to {max(1, self.batch_size // per_step) * per_step} or lower micro_batch_size"
            )
        return self

    @property
    def num_readers(self) -> int:
        """Workers that take pairs of their own: all, or one of each that share their forward passes."""
        return self.most_workers // self.sequence_parallel

    @pydantic.model_validator(mode="after")
    def _deepspeed_leaves_ours_alone(self) -> TrainConfig:
        ours = {
            "train_batch_size": "train.batch_size",
            "train_micro_batch_size_per_gpu": "train.micro_batch_size",
            "gradient_accumulation_steps": "train.batch_size and train.micro_batch_size",
            "gradient_clipping": "train.max_grad_norm",
            "optimizer": "train.learning_rate and train.weight_decay",
            "scheduler": "train.schedule and train.warmup_ratio",
            "bf16": "model.dtype",
            "fp16": "model.dtype",
        }
        for name, option in ours.items():
            if name in self.deepspeed:
                raise ValueError(f"deepspeed.{name} is decided by {option}; leave it out of train.deepspeed and set that")
        if "stage" in (self.deepspeed.get("zero_optimization") or {}):
            raise ValueError("deepspeed.zero_optimization.stage is decided by train.zero_stage; leave it out and set that")
        return self

    @pydantic.model_validator(mode="after")
    def _quantized_is_whole(self) -> TrainConfig:
        if self.lora is None or self.lora.quantize is None:
            return self
        if self.zero_stage == 3:
            raise ValueError(
                f"lora.quantize={self.lora.quantize} keeps the model whole on each device, and zero_stage=3 divides it; set "
                "zero_stage to 2, or lora.quantize to null"
            )
        if self.uncertainty is not None:
            raise ValueError(
                f"uncertainty is estimated by a model whose weights are not rounded, and lora.quantize={self.lora.quantize} rounds "
                "them; set one of the two to null"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _cached_features_are_frozen(self) -> TrainConfig:
        if self.cache_vision_features and (self.train_vision_tower or self.train_projector) and self.lora is None:
            raise ValueError(
                "cache_vision_features needs a frozen vision tower and projector; set train_vision_tower and train_projector to "
                "false, or cache_vision_features to false"
            )
        return self
