"""ZeRO stage 3 from the start: rank 0 reads the weights, and no other rank and no device ever holds them all.

    rank 0     the model in host memory          ┐
    others     its outline on the meta device    ┴─► one module's parameters at a time: sent to all ranks, then partitioned

`deepspeed.initialize` alone takes a whole model on every rank, and moves all of it to the rank's device before it partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from actors.train_job import TrainJob
from vidalign.model.policy import load_policy, outline_policy
from vidalign.model.quantized import load_quantized

ROOT = 0  # the rank that has the weights


def is_root() -> bool:
    """Whether this rank has the weights."""
    return dist.get_rank() == ROOT


def load_model(job: TrainJob, device: torch.device) -> nn.Module:
    """The job's policy as this rank needs it: whole, in 4 bits, or an outline that is sent its weights."""
    if job.train.lora is not None and job.train.lora.quantize is not None:
        return load_quantized(job.model, job.policy_path, device)
    load = load_policy if job.train.zero_stage < 3 or is_root() else outline_policy
    return load(job.model, job.policy_path)


def shard(module: nn.Module, config: dict[str, Any], *, dtype: torch.dtype, device: torch.device) -> None:
    """Partition a module's parameters over all ranks, with rank 0's values. Collective.

    Args:
        config: DeepSpeed's. dtype: of all parameters afterwards, because DeepSpeed takes no others. device: of this rank.
    """
    import deepspeed

    for buffer in module.buffers():  # a checkpoint may hold some that a model made from its config alone does not have
        buffer.data = _from_root(buffer.data, device)
    for inside in list(_modules_with_parameters(module)):
        holder = nn.Module()
        for number, parameter in enumerate(_present(module, inside, lambda meta: _empty(meta, dtype, device))):
            parameter.data = parameter.data.to(dtype)
            holder.register_parameter(str(number), parameter)
        deepspeed.zero.Init(module=holder, config_dict_or_path=config, dtype=dtype)


def send(modules: Iterable[nn.Module], model: nn.Module, device: torch.device) -> None:
    """Give every rank rank 0's parameters and buffers of these modules of a model, whole and in host memory. Collective."""
    for module in modules:
        for inside in list(_modules_with_parameters(module)):
            for parameter in _present(model, inside, lambda meta: _empty(meta, meta.dtype, torch.device("cpu"))):
                parameter.data = _from_root(parameter.data, device)
        for buffer in module.buffers():
            buffer.data = _from_root(buffer.data, device)


def _from_root(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rank 0's value where this rank's is, sent by way of `device`, because a GPU's collectives take nothing else."""
    sent = value.to(device).contiguous()
    dist.broadcast(sent.view(torch.uint8) if sent.ndim else sent, ROOT)
    return sent.to(value.device)


def _modules_with_parameters(module: nn.Module) -> Iterator[nn.Module]:
    return (inside for inside in module.modules() if any(True for _ in inside.parameters(recurse=False)))


def _present(model: nn.Module, inside: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]) -> Iterator[nn.Parameter]:
    """The parameters that a module of a model owns itself; one on the meta device is replaced wherever the model has it."""
    for parameter in list(inside.parameters(recurse=False)):
        if hasattr(parameter, "ds_id"):  # tied to one that was partitioned before
            continue
        if not parameter.is_meta:
            yield parameter
            continue
        made = make(parameter)
        for owner in model.modules():
            for name, value in owner.named_parameters(recurse=False):
                if value is parameter:
                    setattr(owner, name, made)
        yield made


def _empty(meta: nn.Parameter, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(meta.shape, dtype=dtype, device=device), requires_grad=meta.requires_grad)
