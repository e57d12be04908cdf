"""A checkpoint that another number of ranks wrote: DeepSpeed divides a training's states over the ranks that there are.

<checkpoint>/state  of N ranks ── rank 0 ─► <checkpoint>/universal  whole tensors by name ─► each of M ranks takes its share
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
from typing import Any

import torch.distributed as dist

from vidalign.errors import ConfigError

UNIVERSAL = "universal"


def load(engine: Any, folder: pathlib.Path, tag: str, *, leads: bool) -> dict[str, Any]:
    """Continue an engine from what `save_checkpoint` wrote, on whatever number of ranks; returns its client state. Collective.

    `leads`: on one rank of those that share the folder.

    For as long as this takes, a checkpoint of another number of ranks needs its size once more on disk.

    Raises:
        ConfigError: it is of another number of ranks, and its states are on NVMe.
    """
    written_by = num_shards(folder / tag)
    if written_by in (0, dist.get_world_size()):
        _, state = engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
        return state
    if engine.zero_nvme_offload_optimizer():
        raise ConfigError(
            f"the optimizer's states are on NVMe (train.deepspeed), of which each rank reads its own, and {folder} was written by "
            f"{written_by} ranks, not {dist.get_world_size()}; set train.num_workers to {written_by}"
        )
    if leads:
        gather(folder / tag, folder / UNIVERSAL)
    dist.barrier()
    before, engine._config.load_universal_checkpoint = engine._config.load_universal_checkpoint, True
    try:
        _, state = engine.load_checkpoint(str(folder), tag=UNIVERSAL, load_module_strict=False)
    finally:
        engine._config.load_universal_checkpoint = before
    dist.barrier()
    if leads:
        shutil.rmtree(folder / UNIVERSAL)
        (folder / "latest_universal").unlink(missing_ok=True)
    return state


def num_shards(folder: pathlib.Path) -> int:
    """Over how many ranks the states of an optimizer are divided; 0 where each rank had all of them (ZeRO stage 0)."""
    return len(list(folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")))


def gather(sharded: pathlib.Path, whole: pathlib.Path) -> None:
    """Write a checkpoint's parameters and the states of their optimizer as whole tensors, one folder for each parameter."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(whole, ignore_errors=True)  # of a rank that was killed here
    ds_to_universal.main(
        argparse.Namespace(
            input_folder=str(sharded),
            output_folder=str(whole),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
