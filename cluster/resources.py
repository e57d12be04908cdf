"""What a cluster has, and what a run's plan gives to each stage, as plain records with their sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

MIN_CPUS = 2  # the fewest logical CPUs that a Ray started on this machine offers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterResources:
    """What a cluster has now, and what it may grow to.

    `cpus_per_node` and `gpus_per_node` are those of its largest node (default: everything is on one node). `max_num_cpus`
    and `max_num_gpus` are the autoscaler's limits (default: the cluster does not grow), and `max_num_nodes` is with how many nodes.
    `gpus_of_nodes` are the GPUs of each node that has any once the cluster is fully grown (default: all are as large as the largest,
    but for the last). `num_without_cpus` of the nodes have no CPU, as KubeRay's head. `head_cpus` and `head_gpus` are the head node's.
    `beside`: of a part of a cluster, beside what it is, for messages.
    """

    num_cpus: int
    num_gpus: int = 0
    num_nodes: int = 1
    cpus_per_node: int | None = None
    gpus_per_node: int | None = None
    max_num_cpus: int | None = None
    max_num_gpus: int | None = None
    max_num_nodes: int | None = None
    gpus_of_nodes: tuple[int, ...] = ()
    num_without_cpus: int = 0
    head_cpus: int = 0
    head_gpus: int = 0
    beside: str = ""

    @property
    def grows(self) -> bool:
        """Whether the autoscaler may add CPUs or GPUs."""
        return self.total_cpus > self.num_cpus or self.total_gpus > self.num_gpus

    @property
    def total_cpus(self) -> int:
        """CPUs once the cluster is fully grown."""
        return max(self.num_cpus, self.max_num_cpus or 0)

    @property
    def total_gpus(self) -> int:
        """GPUs once the cluster is fully grown."""
        return max(self.num_gpus, self.max_num_gpus or 0)

    @property
    def total_nodes(self) -> int:
        """Nodes with CPUs once the cluster is fully grown."""
        return max(self.num_nodes, self.max_num_nodes or 0) - self.num_without_cpus

    def num_fitting(self, gpus: int) -> int:
        """How many actors of so many GPUs fit, none split over two nodes."""
        return sum(size // gpus for size in self.gpus_by_node)

    @property
    def gpus_by_node(self) -> tuple[int, ...]:
        """GPUs of each node that has any, once the cluster is fully grown."""
        if not self.node_gpus:
            return ()
        full_nodes, rest = divmod(self.total_gpus, self.node_gpus)
        return self.gpus_of_nodes or (*[self.node_gpus] * full_nodes, *([rest] if rest else []))

    @property
    def node_cpus(self) -> int:
        """CPUs of the largest node."""
        return min(self.cpus_per_node or self.total_cpus, self.total_cpus)

    @property
    def node_gpus(self) -> int:
        """GPUs of the largest node."""
        return min(self.gpus_per_node or self.total_gpus, self.total_gpus)

    def describe(self) -> str:
        """The totals in words, for messages."""
        grows = " (once scaled up)" if self.grows else ""
        return f"{count(self.total_cpus, 'CPU')} and {count(self.total_gpus, 'GPU')}{grows}{self.beside}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """`num` equal actors, each with `cpus` logical CPUs and `gpus` GPUs; where they come and go, no fewer than `fewest`."""

    num: int
    cpus: float
    gpus: float = 0
    fewest: int | None = None

    @property
    def total_cpus(self) -> float:
        """CPUs of all actors."""
        return round(self.num * self.cpus, 2)

    @property
    def total_gpus(self) -> float:
        """GPUs of all actors."""
        return round(self.num * self.gpus, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServePlan:
    """Replicas of each served model. One replica is a server actor plus `num_devices` engine bundles.

    `bundle_gpus` is below 1 if the served models share a GPU. `gpu_memory_utilization` is each engine's share of the GPU's
    memory, and None on CPUs. `one_node` says that the cluster has one node and cannot grow. `in_turn` says that more models are
    to be served, each after the one before; `further` for how many more there is room beside these.
    """

    num_models: int
    min_replicas: int
    max_replicas: int
    num_devices: int
    server_cpus: float
    bundle_cpus: float
    bundle_gpus: float
    ingress_cpus: float
    gpu_memory_utilization: float | None
    one_node: bool
    in_turn: bool = False
    further: int = 0

    def bundle(self) -> dict[str, float]:
        """Resources of one device of one engine, as Ray's placement groups take them."""
        return {"CPU": self.bundle_cpus} | ({"GPU": self.bundle_gpus} if self.bundle_gpus else {})

    def workers(self) -> Workers:
        """The devices of all replicas that are started at first."""
        return Workers(
            num=self.num_models * max(1, self.min_replicas) * self.num_devices, cpus=self.bundle_cpus, gpus=self.bundle_gpus
        )

    def total_cpus(self, replicas: int) -> float:
        """CPUs of the endpoint with `replicas` replicas of each model, and of those for which there is room."""
        each = self.server_cpus + self.num_devices * self.bundle_cpus
        return round(self.ingress_cpus + (self.num_models + self.further) * replicas * each, 2)

    def total_gpus(self, replicas: int) -> float:
        """GPUs of the endpoint with `replicas` replicas of each model."""
        return round(self.num_models * replicas * self.num_devices * self.bundle_gpus, 2)

    @property
    def num_cpus_needed(self) -> int:
        """Logical CPUs that a local Ray must offer for this endpoint to be scheduled."""
        return max(MIN_CPUS, math.ceil(self.total_cpus(max(1, self.min_replicas))))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """The plan of a whole run on one cluster. `overlap`: decoders and engines work at the same time as training."""

    decoders: Workers
    engines: Workers
    train: Workers
    serve: ServePlan
    overlap: bool = False

    @property
    def use_gpu(self) -> bool:
        """Whether training runs on GPUs. Engines do if `engines.gpus` > 0."""
        return self.train.gpus > 0

    @property
    def num_cpus_needed(self) -> int:
        """Logical CPUs that a local Ray must offer for every stage of this plan to be scheduled."""
        rollout, train = self.decoders.total_cpus + self.engines.total_cpus, self.train.total_cpus
        return max(math.ceil(rollout + train if self.overlap else max(rollout, train)), self.serve.num_cpus_needed)


def plan_of_nothing() -> ResourcePlan:
    """A plan with nobody in it, for what is asked of stages before a cluster is known."""
    nobody = Workers(num=0, cpus=0)
    serve = ServePlan(
        num_models=0, min_replicas=0, max_replicas=0, num_devices=0, server_cpus=0, bundle_cpus=0, bundle_gpus=0, ingress_cpus=0,
        gpu_memory_utilization=None, one_node=True,
    )  # fmt: skip
    return ResourcePlan(decoders=nobody, engines=nobody, train=nobody, serve=serve)


def count(num: int, noun: str) -> str:
    """A number with its noun, as in "1 GPU" and "2 GPUs"."""
    return f"{num} {noun}" if num == 1 else f"{num:,} {noun}s"


def listed(names: Sequence[str]) -> str:
    """Names in words, as in "a", "a and b" and "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
