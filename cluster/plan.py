"""Who gets which CPUs and GPUs, as pure arithmetic over a config and a cluster. Starts nothing, imports nothing heavy.

The stages of a run follow each other, so each may use the whole cluster; inside one stage everything that lives at the same
time must fit together:

    rollout   decoders (CPU) and vLLM engines stream side by side
    train     one DeepSpeed rank a worker
    serve     `num_served` models side by side (base and aligned), each with its replicas

A count that the config leaves open is chosen to fill the cluster; a count that the config gives is kept or refused, never
lowered. CPUs are Ray's logical ones and may be fractions, so that the same plan exists on two cores.
"""

from __future__ import annotations

import dataclasses
import math

from vidalign.config.run import RunConfig
from vidalign.errors import ClusterError

SMALL_CLUSTER_CPUS = 4  # below this, actors take fractions so that Ray Data's own tasks (one CPU each) still fit
MIN_CPUS = 2
MAX_DECODERS = 64
GPU_MEMORY_UTILIZATION = 0.9  # vLLM's own default, split between engines that share a GPU


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterResources:
    """What a cluster has now, and what it may grow to.

    `cpus_per_node` and `gpus_per_node` are those of its largest node (default: everything is on one node). `max_num_cpus`
    and `max_num_gpus` are the autoscaler's limits (default: the cluster does not grow).
    """

    num_cpus: int
    num_gpus: int = 0
    num_nodes: int = 1
    cpus_per_node: int | None = None
    gpus_per_node: int | None = None
    max_num_cpus: int | None = None
    max_num_gpus: int | None = None

    @property
    def grows(self) -> bool:
        return self.total_cpus > self.num_cpus or self.total_gpus > self.num_gpus

    @property
    def total_cpus(self) -> int:
        return max(self.num_cpus, self.max_num_cpus or 0)

    @property
    def total_gpus(self) -> int:
        return max(self.num_gpus, self.max_num_gpus or 0)

    @property
    def node_cpus(self) -> int:
        return min(self.cpus_per_node or self.total_cpus, self.total_cpus)

    @property
    def node_gpus(self) -> int:
        return min(self.gpus_per_node or self.total_gpus, self.total_gpus)

    def describe(self) -> str:
        grows = " (once scaled up)" if (self.total_cpus, self.total_gpus) != (self.num_cpus, self.num_gpus) else ""
        return f"{_count(self.total_cpus, 'CPU')} and {_count(self.total_gpus, 'GPU')}{grows}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workers:
    """`num` equal actors, each with `cpus` logical CPUs and `gpus` GPUs."""

    num: int
    cpus: float
    gpus: float = 0

    @property
    def total_cpus(self) -> float:
        return round(self.num * self.cpus, 2)

    @property
    def total_gpus(self) -> float:
        return round(self.num * self.gpus, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServePlan:
    """Replicas of each served model. One replica is a server actor plus `num_devices` engine bundles.

    `bundle_gpus` is below 1 where the served models share a GPU; `gpu_memory_utilization` then is each engine's share of
    the GPU's memory, and None on CPUs. `one_node` says that the cluster is one node and stays one.
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

    def bundle(self) -> dict[str, float]:
        """Resources of one device of one engine, as Ray's placement groups take them."""
        return {"CPU": self.bundle_cpus} | ({"GPU": self.bundle_gpus} if self.bundle_gpus else {})

    def total_cpus(self, replicas: int) -> float:
        each = self.server_cpus + self.num_devices * self.bundle_cpus
        return round(self.ingress_cpus + self.num_models * replicas * each, 2)

    def total_gpus(self, replicas: int) -> float:
        return round(self.num_models * replicas * self.num_devices * self.bundle_gpus, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourcePlan:
    """The whole run on one cluster. `use_gpu` says whether training is on GPUs; engines are when `engines.gpus` > 0."""

    decoders: Workers
    engines: Workers
    train: Workers
    serve: ServePlan

    @property
    def use_gpu(self) -> bool:
        return self.train.gpus > 0

    @property
    def num_cpus_needed(self) -> int:
        """Logical CPUs that a local Ray must offer for every stage of this plan to be scheduled."""
        rollout = self.decoders.total_cpus + self.engines.total_cpus
        serve = self.serve.total_cpus(max(1, self.serve.min_replicas))
        return max(MIN_CPUS, math.ceil(max(rollout, self.train.total_cpus, serve)))


def plan(config: RunConfig, resources: ClusterResources, *, num_served: int = 2) -> ResourcePlan:
    """Divide `resources` among the stages of `config`.

    Args:
        num_served: models that one endpoint serves at a time; 2 for base beside aligned, 1 for `vidalign serve`.

    Raises:
        ClusterError: something does not fit, with both numbers and the value that would fit.
    """
    if resources.total_cpus < 1:
        raise ClusterError("the cluster has no CPUs that vidalign may use; start a node with CPUs or set cluster.num_cpus=2")
    engines = _plan_engines(config, resources)
    return ResourcePlan(
        engines=engines,
        decoders=_plan_decoders(config, resources, engines),
        train=_plan_train(config, resources),
        serve=_plan_serve(config, resources, num_served),
    )


def _plan_engines(config: RunConfig, resources: ClusterResources) -> Workers:
    """vLLM engines: as many as the GPUs allow, or one CPU engine a node."""
    wanted, devices = config.rollout.num_engines, config.rollout.gpus_per_engine
    if devices == 0 or (resources.total_gpus == 0 and devices == 1):  # 1, the default, means "a GPU where there are GPUs"
        num = wanted or max(1, resources.num_nodes)
        if resources.total_cpus < SMALL_CLUSTER_CPUS:
            cpus = _share(min(resources.total_cpus, MIN_CPUS) / 4, num)
        else:  # half of the CPUs generate, the rest decode
            cpus = _share(resources.total_cpus // 2, num, most=max(1, resources.node_cpus // 2))
        if num > resources.total_cpus:
            raise _too_many("rollout.num_engines", num, "CPU", resources.total_cpus, resources, cpu=True)
        return Workers(num=num, cpus=cpus)
    fits = _engines_that_fit(devices, resources)
    if fits == 0:
        raise ClusterError(
            f"rollout.gpus_per_engine={devices} needs {_count(devices, 'GPU')} on one node but {_largest(resources)}; "
            f"set rollout.gpus_per_engine to {'0 to generate on CPUs' if not resources.node_gpus else resources.node_gpus}"
        )
    if wanted is not None and wanted > fits:
        raise ClusterError(
            f"rollout.num_engines={wanted} with gpus_per_engine={devices} needs {_count(wanted * devices, 'GPU')} but the "
            f"cluster has {resources.describe()}, where {fits} fit; lower rollout.num_engines to {fits} or add GPU nodes"
        )
    num = wanted or fits
    cpus = float(devices)
    if num * devices >= resources.total_cpus:  # a decoder must still fit beside the engines
        cpus = _share(resources.total_cpus / 2, num)
    return Workers(num=num, cpus=cpus, gpus=float(devices))


def _plan_decoders(config: RunConfig, resources: ClusterResources, engines: Workers) -> Workers:
    """Decoders fill the CPUs that the engines leave, less one for Ray Data's own tasks."""
    free = resources.total_cpus - engines.total_cpus
    wanted = config.video.num_decoders
    if resources.total_cpus < SMALL_CLUSTER_CPUS:
        num = wanted or 1
        if num > resources.total_cpus:
            raise _too_many("video.num_decoders", num, "CPU", resources.total_cpus, resources, cpu=True)
        return Workers(num=num, cpus=_share(min(resources.total_cpus, MIN_CPUS) / 4, num))
    fits = max(1, math.floor(free) - 1)
    if wanted is not None and wanted > fits:
        raise ClusterError(
            f"video.num_decoders={wanted} needs {_count(wanted, 'CPU')} but beside {_count(engines.num, 'engine')} "
            f"{_count(fits, 'CPU')} of the cluster's {resources.total_cpus} remain for decoders; lower video.num_decoders "
            f"to {fits}, leave it out, or set cluster.num_cpus to share a local machine's cores more thinly"
        )
    return Workers(num=wanted or min(fits, MAX_DECODERS), cpus=1)


def _plan_train(config: RunConfig, resources: ClusterResources) -> Workers:
    """One rank a worker: a GPU each, or an equal share of the CPUs."""
    num, use_gpu = config.train.num_workers, config.train.use_gpu
    if use_gpu and resources.total_gpus == 0:
        raise ClusterError(
            f"train.use_gpu=true but the cluster has {resources.describe()}; set train.use_gpu to false, or to null to use "
            "GPUs only where there are some"
        )
    if use_gpu is None:
        use_gpu = resources.total_gpus > 0
    if use_gpu:
        if num > resources.total_gpus:
            raise _too_many("train.num_workers", num, "GPU", resources.total_gpus, resources)
        per_gpu = resources.node_cpus // max(1, resources.node_gpus)
        cpus = min(max(1, min(4, per_gpu)), _share(resources.total_cpus, num))
        return Workers(num=num, cpus=cpus, gpus=1)
    if num > resources.total_cpus:
        raise _too_many("train.num_workers", num, "CPU", resources.total_cpus, resources, cpu=True)
    nodes = max(1, min(resources.num_nodes, resources.total_cpus // resources.node_cpus))
    return Workers(num=num, cpus=max(1, resources.node_cpus // math.ceil(num / nodes)))


def _plan_serve(config: RunConfig, resources: ClusterResources, num_models: int) -> ServePlan:
    """Replicas that fit at `max_replicas`; on few CPUs every actor takes a fraction, on few GPUs the models share one."""
    low, high, devices = config.serve.min_replicas, config.serve.max_replicas, config.serve.gpus_per_replica
    if low > high:
        raise ClusterError(f"serve.min_replicas={low} is above serve.max_replicas={high}; raise serve.max_replicas to {low}")
    on_gpu = devices > 0 and not (devices == 1 and resources.total_gpus == 0)
    bundle_gpus, memory = 0.0, None
    if on_gpu:
        bundle_gpus, memory = _gpu_share(high, devices, num_models, resources)
    num_devices = devices if on_gpu else 1
    actors = num_models * high * (1 + num_devices)
    # One CPU for each server and each device where that leaves the ingress one, else equal fractions of nine tenths.
    roomy = actors + 1 <= resources.total_cpus
    cpus = 1.0 if roomy else _share(0.9 * resources.total_cpus, actors, whole=False)
    if cpus < 0.05:
        raise ClusterError(
            f"serve.max_replicas={high} of {_count(num_models, 'model')} means {actors} actors but the cluster has "
            f"{resources.describe()}; lower serve.max_replicas to {max(1, high // 4)} or add nodes"
        )
    return ServePlan(
        num_models=num_models,
        min_replicas=low,
        max_replicas=high,
        num_devices=num_devices,
        server_cpus=cpus,
        bundle_cpus=cpus,
        bundle_gpus=bundle_gpus,
        ingress_cpus=1.0 if roomy else _share(0.1 * resources.total_cpus, 1, whole=False),
        gpu_memory_utilization=memory,
        one_node=resources.num_nodes == 1 and not resources.grows,
    )


def _gpu_share(replicas: int, devices: int, num_models: int, resources: ClusterResources) -> tuple[float, float]:
    """GPUs of one engine bundle and its part of the GPU's memory."""
    fits = _engines_that_fit(devices, resources)
    if num_models * replicas <= fits:
        return 1.0, GPU_MEMORY_UTILIZATION
    if devices == 1 and replicas <= fits:  # base and aligned on one GPU
        return _floor(1 / num_models), _floor(GPU_MEMORY_UTILIZATION / num_models)
    if fits == 0:
        raise ClusterError(
            f"serve.gpus_per_replica={devices} needs {_count(devices, 'GPU')} on one node but {_largest(resources)}; set "
            f"serve.gpus_per_replica to {resources.node_gpus or '0 to serve on CPUs'}"
        )
    # Several devices an engine: the models cannot share, so each needs its own.
    most = fits if devices == 1 else fits // num_models
    way_out = f"lower serve.max_replicas to {most}" if most else "lower serve.gpus_per_replica"
    raise ClusterError(
        f"serve.max_replicas={replicas} of {_count(num_models, 'model')} with gpus_per_replica={devices} needs "
        f"{num_models * replicas * devices} GPUs but the cluster has {resources.describe()}; {way_out} or add GPU nodes"
    )


def _engines_that_fit(devices: int, resources: ClusterResources) -> int:
    """Engines of `devices` GPUs each, none of them split over two nodes (nodes taken as equal but for a remainder)."""
    if not resources.node_gpus:
        return 0
    full_nodes, rest = divmod(resources.total_gpus, resources.node_gpus)
    return full_nodes * (resources.node_gpus // devices) + rest // devices


def _largest(resources: ClusterResources) -> str:
    if not resources.total_gpus:
        return "the cluster has no GPU"
    return f"its largest node has {_count(resources.node_gpus, 'GPU')}"


def _too_many(key: str, num: int, kind: str, has: int, resources: ClusterResources, *, cpu: bool = False) -> ClusterError:
    way_out = f"set cluster.num_cpus={num} to share a local machine's cores" if cpu else "add GPU nodes"
    return ClusterError(
        f"{key}={num} needs {_count(num, kind)} but the cluster has {resources.describe()}; "
        f"lower {key} to {has} or {way_out}"
    )


def _share(total: float, parts: int, *, most: float = math.inf, whole: bool = True) -> float:
    """An equal part of `total`: whole CPUs where there is at least one each, else hundredths, never rounded up."""
    each = min(total / parts, most)
    return float(math.floor(each)) if whole and each >= 1 else _floor(each)


def _floor(value: float) -> float:
    return math.floor(value * 100 + 1e-9) / 100


def _count(num: int, noun: str) -> str:
    return f"{num} {noun}" if num == 1 else f"{num:,} {noun}s"
