"""Bytes that a rank of a DeepSpeed training holds, by stage, precision and options: states, buffers, and the peak of a step.

Read from DeepSpeed 0.19.8's optimizers (runtime/zero/stage_1_and_2.py, stage3.py, bf16_optimizer.py, fp16/unfused_optimizer.py):

    stage   dtype               gradients between forward passes        more during the optimizer's step
    0       any                 all                                     float32 of all; of a model in float32 a bucket
    1       bfloat16            all, and float32 of all                 nothing           (with several forward passes a step)
    1       other               all                                     float32 of this rank's share
    2       any                 this rank's share                       float32 of it, unless it is that already
    3       any                 this rank's share                       float32 of at most 1e9 elements of it, and a bucket

A model in float32 is counted by the same rows: at stage 1 and above its optimizer has a copy of the weights too. The peak is the
larger of two moments: the end of a forward pass, with all activations, and the step, without any.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vidalign.config.training import TrainConfig
from vidalign.model import loading, memory
from vidalign.model.memory import BYTES

BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in elements
LIVE_PARAMETERS = 1_000_000_000  # its stage3_max_live_parameters
SUB_GROUP = 1_000_000_000  # its sub_group_size, in elements
# bitsandbytes' nf4: a weight's 4 bits, its share of the 8 bits of a scale of 64, and of the 32 bits of a scale of 256 scales.
QUANTIZED_BYTES = 4 / 8 + 1 / 64 + 4 / (64 * 256)
MASTER, MOMENTS = 4, 8  # bytes a parameter in float32: a copy of the weight, and Adam's two moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers of parameters: of all, of those that training changes (with LoRA, the adapter's), of those in 4 bits, and of the largest
    tensor that training changes.
    """

    total: int
    trainable: int
    quantized: int = 0
    largest: int = 0

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all weights."""
        return (self.total - self.quantized) * BYTES[dtype] + math.ceil(self.quantized * QUANTIZED_BYTES)


def count_parameters(model: Any, train: TrainConfig) -> ParameterCount:
    """Count a model's parameters and those that `vidalign.model.policy` trains.

    The model may be on the meta device (`vidalign.model.loading.outline`). Its `requires_grad` flags are changed.
    """
    from vidalign.model import adapters, policy

    total = sum(parameter.numel() for parameter in model.parameters())
    if train.lora is None:
        policy.set_trainable(model, vision_tower=train.train_vision_tower, projector=train.train_projector)
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        return ParameterCount(total=total, trainable=sum(trained), largest=max(trained, default=0))
    layers = adapters.adapter_targets(model, train.lora.targets).values()
    sides = [train.lora.rank * size for layer in layers for size in (layer.in_features, layer.out_features)]
    rounded = 0
    if train.lora.quantize is not None:
        rounded = sum(layer.weight.numel() for layer in adapters.adapter_targets(model).values())
    return ParameterCount(total=total + sum(sides), trainable=sum(sides), quantized=rounded, largest=max(sides))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMemory:
    """Bytes of one rank.

    Attributes:
        weights, gradients, optimizer: model states between forward passes.
        buffers: of communication, while gradients are computed.
        backward: of one gradient more, before it is added to its place.
        step: during the optimizer's step alone.
        host: in host memory, of what `train.deepspeed` offloads.
        accumulates: gradients of a forward pass are there when the next one begins.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int = 0
    backward: int = 0
    step: int = 0
    host: int = 0
    accumulates: bool = False

    @property
    def total(self) -> int:
        """Model states: the sum of the first three."""
        return self.weights + self.gradients + self.optimizer

    def peak(self, activations: int) -> int:
        """The most at one time, where a forward pass keeps so many bytes of activations."""
        # Without earlier gradients those of this pass come as its activations go.
        passing = activations + self.gradients if self.accumulates else max(activations, self.gradients)
        computing = self.weights + self.optimizer + passing + self.buffers + self.backward
        return max(computing, self.total + self.step)


def accumulates(train: TrainConfig) -> bool:
    """Whether an optimizer step takes several forward passes of a rank."""
    return train.tokens_per_micro_batch is not None or train.micro_batch_size * train.num_readers < train.batch_size


def accumulates_in_float32(train: TrainConfig, dtype: str) -> bool:
    """Whether gradients are added up in float32 although they are of another type. `train.deepspeed` has the last word."""
    said = (train.deepspeed.get("data_types") or {}).get("grad_accum_dtype")
    if said is not None:
        return dtype != "float32" and said in ("fp32", "float32")
    return dtype != "float32" and train.zero_stage > 0 and accumulates(train)


def bucket_elements(train: TrainConfig, num_trainable: int) -> int:
    """How many gradients are reduced together. DeepSpeed allocates that much, however few gradients there are, on one rank too."""
    return int(_zero(train).get("reduce_bucket_size", max(1, min(BUCKET, num_trainable))))


def train_memory(count: ParameterCount, train: TrainConfig, dtype: str, *, on_gpu: bool = True) -> TrainMemory:
    """Bytes of a rank under ZeRO with AdamW, without activations.

    Source: ZeRO, arXiv 1910.02054, section 3.1 and figure 1, and the module's docstring.

    Args:
        on_gpu: there AdamW is fused and communication overlaps; on CPUs it makes two tensors as large as what it updates.
    """
    size, workers, stage, zero = BYTES[dtype], train.fewest_workers, train.zero_stage, _zero(train)
    share = math.ceil(count.trainable / (workers if stage >= 1 else 1))
    in_float32 = accumulates_in_float32(train, dtype)
    adds = 4 if in_float32 else size
    weights = math.ceil(count.weight_bytes(dtype) / (workers if stage == 3 else 1))
    optimizer = share * (MOMENTS if stage == 0 and dtype == "float32" else MASTER + MOMENTS)
    buffers = _buffers(count, train, dtype, on_gpu=on_gpu)
    unfused = 0 if on_gpu else 2 * MASTER
    if stage == 0:
        gradients = count.trainable * size
        step = (min(BUCKET, count.trainable) if dtype == "float32" else count.trainable) * MASTER + unfused * count.largest
    elif stage == 3:
        at_once = min(share, int(zero.get("sub_group_size", SUB_GROUP)))
        gradients, step = share * adds, at_once * (MASTER + unfused) + bucket_elements(train, count.trainable) * size
    elif stage == 1 and in_float32 and dtype == "bfloat16" and not _offloads(zero, "offload_optimizer"):
        gradients, step = count.trainable * (4 + size), share * unfused
    elif stage == 2 and adds == 4:
        gradients, step = share * adds, share * unfused
    else:  # gradients of their own type go once those in float32 are there
        gradients = (count.trainable if stage == 1 else share) * adds
        step = max(share * MASTER, share * (MASTER + unfused) - gradients)
    host = 0
    if _offloads(zero, "offload_optimizer"):
        host, optimizer, step = optimizer + share * MASTER, 0, 0
        # Gradients that are added up in float32 stay on the device until the step (DeepSpeed's compact partition buffer); others go
        # to the host as they come, and those that come back are put into a tensor as large as the largest.
        gradients = gradients if stage == 1 or (stage == 2 and in_float32) else 0
        buffers += count.largest * size if stage < 3 else 0
    if _offloads(zero, "offload_param"):
        host, weights = host + weights, 0
    return TrainMemory(
        weights=weights + _second_copy(count, zero, dtype),
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        backward=count.largest * size,
        step=step,
        host=host,
        accumulates=accumulates(train),
    )


def checkpoint_bytes(count: ParameterCount, dtype: str) -> int:
    """Bytes of one training checkpoint: optimizer states and trained weights, of all workers together."""
    return count.trainable * (MASTER + MOMENTS + BYTES[dtype])


def predict(
    folder: str,
    train: TrainConfig,
    dtype: str,
    *,
    num_tokens: int,
    num_vision_tokens: int | None = None,
    on_gpu: bool = True,
    trust_remote_code: bool = False,
) -> tuple[TrainMemory, int]:
    """What a training step on a model folder will take: (bytes by kind, bytes at the peak). Reads config.json alone.

    Args:
        num_tokens: of one forward pass, vision tokens, text and responses, as the model sees them.
        num_vision_tokens: of those, the ones that a vision tower computes; None: all, 0: from kept features.

    Raises:
        ModelError: see `vidalign.model.loading.outline`.
    """
    outline = loading.outline(folder, trust_remote_code=trust_remote_code, dtype=dtype, weights=False)
    states = train_memory(count_parameters(outline, train), train, dtype, on_gpu=on_gpu)
    held = memory.activations(outline, dtype).training(
        num_tokens,
        num_tokens if num_vision_tokens is None else num_vision_tokens,
        checkpointing=train.gradient_checkpointing,
        trains_vision=train.train_vision_tower and train.lora is None,
    )
    return states, states.peak(held)


def _buffers(count: ParameterCount, train: TrainConfig, dtype: str, *, on_gpu: bool) -> int:
    """Buckets in which gradients are reduced, and at stage 3 the parameters that are whole at a time."""
    size, zero = BYTES[dtype], _zero(train)
    if train.zero_stage == 0:
        return 0
    bucket = bucket_elements(train, count.trainable)
    if train.zero_stage == 3:
        live = (
            min(int(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)), count.total) if train.most_workers > 1 else 0
        )
        return (bucket + live) * size
    if train.zero_stage == 1 and accumulates_in_float32(train, dtype):
        return bucket * 4 if train.most_workers > 1 else 0
    return bucket * size * (2 if zero.get("overlap_comm", on_gpu) else 1)


def _second_copy(count: ParameterCount, zero: Mapping[str, Any], dtype: str) -> int:
    """hpZ keeps the weights a second time, divided among the GPUs of a node alone."""
    group = int(zero.get("zero_hpz_partition_size", 1))
    return math.ceil(count.weight_bytes(dtype) / group) if group > 1 else 0


def _zero(train: TrainConfig) -> Mapping[str, Any]:
    return train.deepspeed.get("zero_optimization") or {}


def _offloads(zero: Mapping[str, Any], what: str) -> bool:
    return (zero.get(what) or {}).get("device", "none") != "none"
