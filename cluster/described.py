"""A cluster in words, for a plan on a machine that is not part of it: `8x80` is one node with 8 GPUs of 80 GB, `2x8x80` two."""

from __future__ import annotations

import dataclasses
import re

from cluster.resources import ClusterResources, count
from vidalign.errors import ClusterError

CPUS_PER_GPU = 8  # of a described node
GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machines:
    """What a run is planned for.

    Attributes:
        resources: CPUs, GPUs and nodes.
        gpu_memory: bytes of each GPU; None where they are not known.
        host_memory: bytes of each node's memory; None where they are not known.
        here: whether this machine is among them, so that its folders, disks and ports are the run's.
        note: what was assumed, as a sentence; empty if nothing was.
    """

    resources: ClusterResources
    gpu_memory: int | None = None
    host_memory: int | None = None
    here: bool = True
    note: str = ""


def described(text: str) -> Machines:
    """The cluster that NODESxGPUSxGB or GPUSxGB describes. Raises `ClusterError` for anything else."""
    found = re.fullmatch(r"(?:(\d+)x)?(\d+)x(\d+(?:\.\d+)?)(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    if found is None or not (int(found[1] or 1) and int(found[2]) and float(found[3])):
        raise ClusterError(
            f"--on={text} describes no cluster; write GPUs x GB, such as 8x80 for one node with 8 GPUs of 80 GB, or nodes x GPUs x "
            "GB, such as 2x8x80"
        )
    nodes, gpus, size = int(found[1] or 1), int(found[2]), float(found[3])
    cpus = CPUS_PER_GPU * gpus
    return Machines(
        resources=ClusterResources(
            num_cpus=nodes * cpus, num_gpus=nodes * gpus, num_nodes=nodes, cpus_per_node=cpus, gpus_per_node=gpus
        ),
        gpu_memory=int(size * GIB),
        here=False,
        note=f"planned for {count(nodes, 'node')} with {count(gpus, 'GPU')} of {size:g} GB each, and {CPUS_PER_GPU} CPUs a GPU",
    )
