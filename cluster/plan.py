"""Who gets which CPUs and GPUs, as pure arithmetic over options and a cluster. Starts nothing and imports nothing heavy.

The stages of a run follow each other, so each may use the whole cluster; with `cluster.overlap`, rollout and train run at the
same time and share it (`cluster/overlap.py`). Everything that runs at the same time must fit together:

    rollout   decoders (CPU) and vLLM engines, streaming side by side
    train     one DeepSpeed rank per worker
    evaluate  base and aligned side by side, each with its replicas, or one after the other where each would need the other's GPUs

A number that the config leaves open is chosen to fill the cluster. A number that the config gives is kept or refused, never
lowered. CPUs are Ray's logical CPUs and may be fractions, so that the same plan works on two cores.
"""

from __future__ import annotations

import dataclasses
import math

from cluster.overlap import left_beside, training_share
from cluster.resources import MIN_CPUS, ClusterResources, ResourcePlan, ServePlan, Workers, count
from vidalign.config.run import RolloutConfig, ServeConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ClusterError

SMALL_CLUSTER_CPUS = 4  # with fewer, actors take fractions so that Ray Data's own tasks (one CPU each) still fit
MAX_DECODERS = 64
GPU_ENGINE_CPUS = 4  # an engine's own threads render prompts, schedule and detokenize beside its GPU
GPU_MEMORY_UTILIZATION = 0.9  # an engine's share of its GPU, split between engines that share one
SERVING_CPUS = 0.9  # of few CPUs, the part that replicas share; the rest is the ingress's
LEAST_CPUS = 0.05  # of a replica's actor


def plan(
    resources: ClusterResources,
    *,
    rollout: RolloutConfig,
    train: TrainConfig,
    serve: ServeConfig,
    num_decoders: int | tuple[int, int] | None,
    num_videos: int | None = None,
    num_served: int = 2,
    in_turn: bool | None = None,
    overlap: bool = False,
) -> ResourcePlan:
    """Divide `resources` among the stages of a run.

    Args:
        num_decoders: decoders of the rollout (`video.num_decoders`), or [fewest, most]; None means as many as fit, and no more than
            videos.
        num_videos: how many videos and images there are to decode; None where that is not known.
        num_served: how many models are evaluated; by default two, base and aligned. in_turn: see `plan_evaluation`.
        overlap: training and rollout run at the same time (`cluster.overlap`).

    Raises:
        ClusterError: something does not fit. The message gives both numbers and the value that would fit.
    """
    _refuse_no_cpus(resources)
    left, training = resources, None
    if overlap:
        is_small = resources.total_cpus < SMALL_CLUSTER_CPUS
        training = training_share(_plan_train(train, resources), resources, is_small=is_small)
        left = left_beside(training, resources, rollout.gpus_per_engine)
    engines = _plan_engines(rollout, left)
    return ResourcePlan(
        engines=engines,
        decoders=_plan_decoders(num_decoders, num_videos, left, engines),
        train=training or _plan_train(train, resources),
        serve=plan_evaluation(serve, in_turn, resources, num_served),
        overlap=overlap,
    )


def plan_evaluation(serve: ServeConfig, in_turn: bool | None, resources: ClusterResources, num_models: int) -> ServePlan:
    """Plan the endpoint of an evaluation, whose replicas fill the GPUs.

    Args:
        in_turn: serve the models one after the other (`evaluate.in_turn`). None: where there are GPUs, but not enough for each model
            to have its own.

    Raises:
        ClusterError: something does not fit. The message gives both numbers and the value that would fit.
    """
    _refuse_no_cpus(resources)
    devices = serve.gpus_per_replica
    fits = resources.num_fitting(devices) if _on_gpu(devices, resources) else 0
    if in_turn is None:
        in_turn = 0 < fits < num_models * serve.max_replicas
    at_once = 1 if in_turn else num_models
    actors = at_once * (1 + devices)  # of a replica of each model
    filled = min(fits // at_once, math.floor(SERVING_CPUS * resources.total_cpus / LEAST_CPUS / actors))
    if filled > serve.max_replicas:
        low = serve.min_replicas if resources.grows else filled
        serve = serve.model_copy(update={"min_replicas": low, "max_replicas": filled})
    made = plan_serve(serve, resources, at_once)
    return dataclasses.replace(made, in_turn=in_turn and num_models > 1)


def further_versions(serve: ServeConfig, resources: ClusterResources, num_models: int) -> int:
    """For how many further versions of a policy an endpoint leaves room: CPUs are shares of a number, GPUs are real."""
    if num_models < 2:
        return 0
    if serve.further_versions is not None:
        return serve.further_versions
    return 0 if _on_gpu(serve.gpus_per_replica, resources) else 1


def plan_serve(serve: ServeConfig, resources: ClusterResources, num_models: int, *, further: int = 0) -> ServePlan:
    """Plan replicas that fit even at `max_replicas`. With few CPUs, actors take fractions; with few GPUs, models share one.

    `further`: how many models more than `num_models` are to find room later.

    Raises:
        ClusterError: something does not fit. The message gives both numbers and the value that would fit.
    """
    _refuse_no_cpus(resources)
    low, high, devices = serve.min_replicas, serve.max_replicas, serve.gpus_per_replica
    if low > high:
        raise ClusterError(f"serve.min_replicas={low} is above serve.max_replicas={high}; raise serve.max_replicas to {low}")
    on_gpu = _on_gpu(devices, resources)
    bundle_gpus, memory = 0.0, None
    if on_gpu:
        bundle_gpus, memory = _gpu_share(high, devices, num_models + further, resources)
    num_devices = devices if on_gpu else 1
    actors = (num_models + further) * high * (1 + num_devices)
    # One CPU for each server and each device if that leaves one for the ingress, else equal shares of nine tenths of the CPUs.
    roomy = actors + 1 <= resources.total_cpus
    cpus = 1.0 if roomy else _share(SERVING_CPUS * resources.total_cpus, actors, whole=False)
    if cpus < LEAST_CPUS:
        raise ClusterError(
            f"serve.max_replicas={high} of {count(num_models + further, 'model')} means {actors} actors, but the cluster has "
            f"{resources.describe()}; lower serve.max_replicas to {max(1, high // 4)} or add nodes"
        )
    return ServePlan(
        num_models=num_models,
        further=further,
        min_replicas=low,
        max_replicas=high,
        num_devices=num_devices,
        server_cpus=cpus,
        bundle_cpus=cpus,
        bundle_gpus=bundle_gpus,
        ingress_cpus=1.0 if roomy else _share((1 - SERVING_CPUS) * resources.total_cpus, 1, whole=False),
        gpu_memory_utilization=memory,
        one_node=resources.num_nodes == 1 and not resources.grows,
    )


def _plan_engines(rollout: RolloutConfig, resources: ClusterResources) -> Workers:
    """Plan the vLLM engines: as many as the GPUs allow, or one CPU engine per node."""
    devices = rollout.gpus_per_engine
    if not _on_gpu(devices, resources):
        wanted, fewest = _wanted(rollout.num_engines, resources.total_cpus)
        num = wanted or max(1, resources.total_nodes)
        if resources.total_cpus < SMALL_CLUSTER_CPUS:
            cpus = _share(min(resources.total_cpus, MIN_CPUS) / 4, num)
        else:  # half of the CPUs generate, the rest decode
            cpus = _share(resources.total_cpus // 2, num, most=max(1, resources.node_cpus // 2))
        if num > resources.total_cpus:
            raise _too_many("rollout.num_engines", num, "CPU", resources.total_cpus, resources, cpu=True)
        return Workers(num=num, cpus=cpus, fewest=fewest)
    fits = resources.num_fitting(devices)
    wanted, fewest = _wanted(rollout.num_engines, fits)
    if fits == 0:
        raise ClusterError(
            f"rollout.gpus_per_engine={devices} needs {count(devices, 'GPU')} on one node, but {_largest(resources)}; "
            f"set rollout.gpus_per_engine to {'0 to generate on CPUs' if not resources.node_gpus else resources.node_gpus}"
        )
    if wanted is not None and wanted > fits:
        raise ClusterError(
            f"rollout.num_engines={wanted} with gpus_per_engine={devices} needs {count(wanted * devices, 'GPU')}, but the "
            f"cluster has {resources.describe()}, where {fits} fit; lower rollout.num_engines to {fits} or add GPU nodes"
        )
    num = wanted or fits
    cpus = float(max(devices, GPU_ENGINE_CPUS))
    # A decoder must still fit alongside the engines, and an engine on one node; half of the CPUs decode.
    cpus = min(
        cpus, _share(resources.total_cpus / 2, num), _share(resources.node_cpus / 2, max(1, resources.node_gpus // devices))
    )
    return Workers(num=num, cpus=cpus, gpus=float(devices), fewest=fewest)


def _wanted(number: int | tuple[int, int] | None, fits: int) -> tuple[int | None, int | None]:
    """How many a configuration asks for, of [fewest, most] as many as fit; and with how many it goes on, None where all are needed."""
    if not isinstance(number, tuple):
        return number, None
    low, high = number
    return max(low, min(high, fits)), low


def _plan_decoders(
    decoders: int | tuple[int, int] | None, num_videos: int | None, resources: ClusterResources, engines: Workers
) -> Workers:
    """Decoders fill the CPUs that the engines leave, less one for Ray Data's own tasks."""
    most = MAX_DECODERS if num_videos is None else max(1, min(MAX_DECODERS, num_videos))
    free = resources.total_cpus - engines.total_cpus
    if resources.total_cpus < SMALL_CLUSTER_CPUS:
        wanted, fewest = _wanted(decoders, resources.total_cpus)
        num = wanted or 1
        if num > resources.total_cpus:
            raise _too_many("video.num_decoders", num, "CPU", resources.total_cpus, resources, cpu=True)
        return Workers(num=num, cpus=_share(min(resources.total_cpus, MIN_CPUS) / 4, num), fewest=fewest)
    fits = max(1, math.floor(free) - 1)
    wanted, fewest = _wanted(decoders, fits)
    if wanted is not None and wanted > fits:
        raise ClusterError(
            f"video.num_decoders={wanted} needs {count(wanted, 'CPU')}, but alongside {count(engines.num, 'engine')} "
            f"only {count(fits, 'CPU')} of the cluster's {resources.total_cpus}{resources.beside} remain for decoders; lower "
            f"video.num_decoders to {fits}, leave it out, or raise cluster.num_cpus to divide a local machine's cores among more "
            "logical CPUs"
        )
    return Workers(num=wanted or min(fits, most), cpus=1, fewest=fewest)


def _plan_train(train: TrainConfig, resources: ClusterResources) -> Workers:
    """One rank per worker, each with a GPU or an equal share of the CPUs; of [fewest, most], as many as fit."""
    fewest, most, use_gpu = train.fewest_workers, train.most_workers, train.use_gpu
    if use_gpu and resources.total_gpus == 0:
        raise ClusterError(
            f"train.use_gpu=true, but the cluster has {resources.describe()}; set train.use_gpu to false, or to null to use "
            "GPUs only if there are any"
        )
    if use_gpu is None:
        use_gpu = resources.total_gpus > 0
    if use_gpu:
        num = max(fewest, min(most, resources.total_gpus))
        if num > resources.total_gpus:
            raise _too_many("train.num_workers", num, "GPU", resources.total_gpus, resources)
        per_gpu = resources.node_cpus // max(1, resources.node_gpus)
        cpus = min(max(1, min(4, per_gpu)), _share(resources.total_cpus, num))
        return Workers(num=num, cpus=cpus, gpus=1)
    num = max(fewest, min(most, resources.total_cpus))
    if num > resources.total_cpus:
        raise _too_many("train.num_workers", num, "CPU", resources.total_cpus, resources, cpu=True)
    nodes = max(1, min(resources.total_nodes, resources.total_cpus // resources.node_cpus))
    return Workers(num=num, cpus=max(1, resources.node_cpus // math.ceil(num / nodes)))


def _gpu_share(replicas: int, devices: int, num_models: int, resources: ClusterResources) -> tuple[float, float]:
    """GPUs of one engine bundle, and its share of the GPU's memory."""
    fits = resources.num_fitting(devices)
    if num_models * replicas <= fits:
        return 1.0, GPU_MEMORY_UTILIZATION
    if devices == 1 and replicas <= fits:  # such as base and aligned on one GPU
        on_each = math.ceil(num_models * replicas / fits)
        return _floor(1 / on_each), _floor(GPU_MEMORY_UTILIZATION / on_each)
    if fits == 0:
        raise ClusterError(
            f"serve.gpus_per_replica={devices} needs {count(devices, 'GPU')} on one node, but {_largest(resources)}; set "
            f"serve.gpus_per_replica to {resources.node_gpus or '0 to serve on CPUs'}"
        )
    # With several devices per engine, the models cannot share them, so each needs its own.
    most = fits if devices == 1 else fits // num_models
    way_out = f"lower serve.max_replicas to {most}" if most else "lower serve.gpus_per_replica"
    raise ClusterError(
        f"serve.max_replicas={replicas} of {count(num_models, 'model')} with gpus_per_replica={devices} needs "
        f"{num_models * replicas * devices} GPUs, but the cluster has {resources.describe()}; {way_out} or add GPU nodes"
    )


def _on_gpu(devices: int, resources: ClusterResources) -> bool:
    """Whether an engine of so many GPUs has any; 1, the default, means "a GPU if there is one"."""
    return devices > 0 and not (devices == 1 and resources.total_gpus == 0)


def _largest(resources: ClusterResources) -> str:
    if not resources.total_gpus:
        return "the cluster has no GPU"
    return f"its largest node has {count(resources.node_gpus, 'GPU')}"


def _refuse_no_cpus(resources: ClusterResources) -> None:
    if resources.total_cpus < 1:
        raise ClusterError("the cluster has no CPUs that vidalign can use; start a node with CPUs or set cluster.num_cpus=2")


def _too_many(key: str, num: int, kind: str, has: int, resources: ClusterResources, *, cpu: bool = False) -> ClusterError:
    way_out = f"set cluster.num_cpus={num} to share a local machine's cores" if cpu else "add GPU nodes"
    return ClusterError(
        f"{key}={num} needs {count(num, kind)}, but the cluster has {resources.describe()}; lower {key} to {has} or {way_out}"
    )


def _share(total: float, parts: int, *, most: float = math.inf, whole: bool = True) -> float:
    """An equal part of `total`: whole CPUs if there is at least one for each, else hundredths; never rounded up."""
    each = min(total / parts, most)
    return float(math.floor(each)) if whole and each >= 1 else _floor(each)


def _floor(value: float) -> float:
    return math.floor(value * 100 + 1e-9) / 100
