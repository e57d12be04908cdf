"""What training takes and what it leaves, where responses of the next round are made beside it (`cluster.overlap`): pure arithmetic.

all CPUs and GPUs ─► training: its GPUs, and up to half of the CPUs
                  └► left: decoders and engines, planned as if they were a cluster of their own
"""

from __future__ import annotations

import dataclasses
import math

from cluster.resources import MIN_CPUS, ClusterResources, Workers, count
from vidalign.errors import ClusterError

BESIDE = " beside training (cluster.overlap)"
TASK_CPUS = 1  # of Ray Data's own tasks, for which a small cluster keeps room


def training_share(planned: Workers, resources: ClusterResources, *, is_small: bool) -> Workers:
    """The workers of a training that is planned for the whole cluster, with CPUs for about half of it.

    Raises:
        ClusterError: there is one CPU.
    """
    total = resources.total_cpus
    if total < MIN_CPUS:
        raise ClusterError(
            f"cluster.overlap=true needs {MIN_CPUS} CPUs, one for training and one for what is made beside it, but the cluster "
            f"has {resources.describe()}; set cluster.num_cpus={MIN_CPUS} to share a local machine's core, or cluster.overlap to false"
        )
    budget = (total - TASK_CPUS) / 2 if is_small else total / 2
    cpus = min(planned.cpus, budget / planned.num)
    return dataclasses.replace(planned, cpus=float(math.floor(cpus)) if cpus >= 1 else math.floor(cpus * 100 + 1e-9) / 100)


def left_beside(training: Workers, resources: ClusterResources, gpus_per_engine: int) -> ClusterResources:
    """What a training leaves of a cluster. Its ranks take the GPUs that no engine fits in first.

    Raises:
        ClusterError: engines are to have GPUs, and no engine fits beside the training.
    """
    taken = math.ceil(training.total_cpus)
    on_one = math.ceil(training.num / max(1, resources.total_nodes)) * training.cpus
    sizes = _without(resources.gpus_by_node, int(training.total_gpus), max(1, gpus_per_engine))
    left = dataclasses.replace(
        resources,
        num_cpus=max(0, resources.num_cpus - taken),
        max_num_cpus=None if resources.max_num_cpus is None else max(0, resources.max_num_cpus - taken),
        cpus_per_node=max(1, math.floor(resources.node_cpus - on_one)),
        num_gpus=sum(sizes),
        max_num_gpus=None,
        gpus_per_node=max(sizes, default=0) or None,
        gpus_of_nodes=sizes,
        beside=BESIDE,
    )
    if gpus_per_engine and resources.num_fitting(gpus_per_engine) and not left.num_fitting(gpus_per_engine):
        most = resources.total_gpus - gpus_per_engine
        fewer = (
            f"lower train.num_workers to {most}"
            if most > 0
            else "set train.use_gpu to false or rollout.gpus_per_engine to 0"
        )
        raise ClusterError(
            f"cluster.overlap=true needs {count(int(training.total_gpus), 'GPU')} for train.num_workers={training.num} and, beside "
            f"them, {count(gpus_per_engine, 'GPU')} on one node for an engine, but the cluster has {resources.describe()}; {fewer}, "
            "add GPU nodes, or set cluster.overlap to false"
        )
    return left


def _without(sizes: tuple[int, ...], taken: int, per_engine: int) -> tuple[int, ...]:
    """GPUs of each node once `taken` are gone: first those that are no whole engine's, then of the nodes with the fewest."""
    left = list(sizes)
    for step in (lambda size: size % per_engine, lambda size: size):
        for place in sorted(range(len(left)), key=lambda place: left[place]):
            here = min(step(left[place]), taken)
            left[place] -= here
            taken -= here
    return tuple(size for size in left if size)
