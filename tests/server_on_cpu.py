"""A replica that Ray places as one with GPUs, and that computes on CPUs: for clusters whose GPUs are only numbers. Imports vLLM."""

import json
import os
import pathlib

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serving.engine import LeanEngine, PolicyServer


def note_gpus(folder: pathlib.Path) -> None:
    """Write down which GPUs this process was given."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"gpus": ray.get_gpu_ids(), "visible": os.environ["CUDA_VISIBLE_DEVICES"]}
    (folder / f"{os.getpid()}.json").write_text(json.dumps(given))


class EngineOnCpu(LeanEngine):
    """Asks for its GPU as the worker of vLLM's own executor would, and then computes without it."""

    def _prepare_engine_config(self, callback_ctx):
        group = callback_ctx.placement_group
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=len(group.bundle_specs) - 1)
        share = float(os.environ.get("VLLM_RAY_PER_WORKER_GPUS", "1"))
        worker = ray.remote(note_gpus).options(num_cpus=0, num_gpus=share, scheduling_strategy=place)
        ray.get(worker.remote(pathlib.Path(os.environ["GPUS_GIVEN"])))
        engine_args, frontend_args, config = super()._prepare_engine_config(callback_ctx)
        assert config.parallel_config.distributed_executor_backend == "ray"
        config.parallel_config.distributed_executor_backend = "uni"
        return engine_args, frontend_args, config


class ServerOnCpu(PolicyServer):
    _default_engine_cls = EngineOnCpu
