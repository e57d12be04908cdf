"""The project's own learner on one device at the shapes of real models: time and memory of a step, checkpoint and export.

DeepSpeed and the learner run as in a run, in a process group of one rank; only Ray is left out.
"""

from __future__ import annotations

import functools
import pathlib
import shutil
import statistics
import time
from typing import Any

import torch

from bench import processes
from bench.gpu_parts.facts import synchronize
from bench.gpu_parts.models import SHAPES, make_data, make_job, make_model
from bench.memory import resident
from vidalign.config.training import TrainConfig

CHECKPOINTED = {"gradient_checkpointing": True, "zero_stage": 2}
LORA = {"lora": {"rank": 64, "alpha": 128}}
QLORA = {"lora": {"rank": 64, "alpha": 128, "quantize": "4bit"}}
HOST_OPTIMIZER = {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu", "pin_memory": True}}}}
HOST_PARAMETERS = {"deepspeed": {"zero_optimization": {"offload_param": {"device": "cpu", "pin_memory": True}}}}
# name: (shape, options of `train`, whether its checkpoint and export are measured)
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "3B, all weights": ("3B", CHECKPOINTED, True),
    "3B, all weights, ZeRO-3": ("3B", {**CHECKPOINTED, "zero_stage": 3}, False),
    "3B, features kept, 16k tokens a pass": (
        "3B",
        {**CHECKPOINTED, "cache_vision_features": True, "tokens_per_micro_batch": 16_384},
        False,
    ),
    "3B, separate sequences": ("3B", {**CHECKPOINTED, "shared_prefix": False}, False),
    "7B, LoRA": ("7B", {**CHECKPOINTED, **LORA}, True),
    "7B, QLoRA": ("7B", {**CHECKPOINTED, **QLORA}, True),
    "3B, optimizer on the host": ("3B", {**CHECKPOINTED, **HOST_OPTIMIZER}, False),
    "3B, ZeRO-3, parameters on the host": ("3B", {**CHECKPOINTED, "zero_stage": 3, **HOST_PARAMETERS}, False),
}
QUICK: dict[str, tuple[str, dict[str, Any], bool]] = {
    "tiny, all weights": ("tiny", CHECKPOINTED, True),
    "tiny, LoRA": ("tiny", {**CHECKPOINTED, **LORA}, True),
}
NUM_STEPS = 5  # the first two warm up
MOST_KEPT = 8 * 2**30  # bytes of a checkpoint: one of all weights takes longer to write than all else here together


def training(work: pathlib.Path, device: torch.device, name: str, *, dtype: str = "bfloat16") -> dict[str, Any]:
    """Measure one of `CASES` (or `QUICK`)."""
    from actors.learner import Learner
    from vidalign.model.training_memory import count_parameters

    shape_name, options, keeps = {**CASES, **QUICK}[name]
    shape = SHAPES[shape_name]
    model = make_model(work / shape_name, shape, device=device, dtype=dtype)
    data, folder = work / f"{shape_name} data", work / name.replace(" ", "_").replace(",", "")
    if not (data / "probe.parquet").is_file():
        make_data(data, shape)
    shutil.rmtree(folder, ignore_errors=True)
    batch_size = min(8, shape.num_pairs)
    num_epochs = -(-NUM_STEPS * batch_size // shape.num_pairs)
    processes.join_alone(device)
    began = time.perf_counter()
    job = make_job(folder, data, model, shape, **options, num_epochs=num_epochs)
    learner = Learner(job, device=device)
    learner.monitor.measure(0)
    synchronize(device)
    found: dict[str, Any] = {"model": shape_name, "start_s": time.perf_counter() - began, "dtype": dtype}
    counted = count_parameters(_outline(model.path, dtype), learner.job.train)
    found |= {"num_parameters": counted.total, "num_trained": counted.trainable}
    of_pass, tokens = _tokens(learner)
    found["predicted"] = _predicted(model.path, dtype, job.train, of_pass)
    groups = [learner.view.sequences(learner.data.groups[index]) for index in learner.order[0]]
    began = time.perf_counter()
    for group in groups:
        learner.source.batch([group])
    found["render_s"] = time.perf_counter() - began
    seconds, losses, peak = [], [], 0
    for indices in learner.order[:NUM_STEPS]:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        began = time.perf_counter()
        losses.append(learner.step(indices)[0])
        synchronize(device)
        seconds.append(time.perf_counter() - began)
        learner.step_index += 1
        peak = max(peak, _allocated(device))
    assert all(abs(loss) < 1e4 for loss in losses), losses
    found |= {
        "step_s": statistics.median(seconds[2:]),
        "losses": losses,
        "num_pairs": batch_size,
        "num_tokens": tokens,
        "flops": _flops(learner, tokens),
        "peak": peak,
    }
    if keeps:
        found |= _kept(learner, folder, device, dtype)
    shutil.rmtree(folder, ignore_errors=True)
    return found


def _allocated(device: torch.device) -> int:
    """Bytes: on a GPU what PyTorch had allocated at the peak, on a CPU what this process holds at its peak."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


@functools.lru_cache(maxsize=2)
def _outline(path: str, dtype: str) -> Any:
    from vidalign.model import loading

    return loading.outline(path, dtype=dtype)


def _tokens(learner: Any) -> tuple[int, int]:
    """Tokens of the language model: of the largest forward pass, which is a pair or fills the budget, and of the first step."""
    sizes = [learner.source.num_tokens(learner.view.sequences(group)) for group in learner.data.groups]
    learner.source._kept.clear()
    train, largest = learner.job.train, max(sizes)
    budget = train.tokens_per_micro_batch
    of_pass = largest if budget is None else min(budget, largest * train.batch_size)
    return of_pass, sum(sizes[index] for index in learner.order[0])


def _predicted(path: str, dtype: str, train: TrainConfig, num_tokens: int) -> dict[str, int]:
    """What the dry run says that a step holds at its peak, in bytes: between forward passes, and on top of that."""
    from vidalign.model import training_memory

    num_vision_tokens = 0 if train.cache_vision_features else num_tokens
    states, peak = training_memory.predict(path, train, dtype, num_tokens=num_tokens, num_vision_tokens=num_vision_tokens)
    return {"weights": states.weights, "optimizer": states.optimizer, "the rest": peak - states.weights - states.optimizer}


def _flops(learner: Any, num_tokens: int) -> float:
    """Operations that a step's forward and backward pass must do: two a weight and token forwards, four backwards.

    Weights that do not change need no gradient of their own, so two backwards. Attention and the vision tower are left out, and so is
    what gradient checkpointing computes again.
    """
    from vidalign.model import families
    from vidalign.model.weights import unwrapped

    decoder = families.decoder(unwrapped(learner.rank.model))
    whole = sum(getattr(p, "ds_numel", p.numel()) for name, p in decoder.named_parameters() if "embed_tokens" not in name)
    changed = learner.job.train.lora is None
    return float(whole * num_tokens * (6 if changed else 4))


def _kept(learner: Any, folder: pathlib.Path, device: torch.device, dtype: str) -> dict[str, Any]:
    """Seconds and bytes of an export and what it adds on the device; and of a checkpoint, if it is of bearable size."""
    from vidalign.model import training_memory
    from vidalign.model.checkpoint import export_policy

    train = learner.job.train
    found: dict[str, Any] = {}
    count = training_memory.count_parameters(_outline(learner.job.policy_path, dtype), train)
    if training_memory.checkpoint_bytes(count, dtype) < MOST_KEPT:
        began = time.perf_counter()
        learner.rank.save(folder / "checkpoint", {})
        found |= {"checkpoint_s": time.perf_counter() - began, "checkpoint_bytes": _bytes(folder / "checkpoint")}
        shutil.rmtree(folder / "checkpoint")
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    began = time.perf_counter()
    export_policy(
        learner.rank.model,
        folder / "model",
        base=learner.job.policy_path,
        parent="",
        frame_spec=learner.job.frame_spec,
        prompt=learner.job.plain_prompt,
        zero_stage=train.zero_stage,
    )
    found["export_s"] = time.perf_counter() - began
    found["export_bytes"] = _bytes(folder / "model")
    if device.type == "cuda":
        found["export_more"] = torch.cuda.max_memory_allocated(device) - before
    return found


def _bytes(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
