"""How each vLLM engine is started: the options and the environment of the generator, the judge and a served replica.

These are functions of their arguments and of `SCRATCH` in the environment. What the user sets in `engine_args` overrides
everything here.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from cluster.plan import GPU_MEMORY_UTILIZATION
from cluster.resources import ServePlan
from vidalign.config.judging import JudgeConfig
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.errors import ModelError

CPU_BLOCK_SIZE = 32  # tokens; the CPU attention kernels need a multiple of it
CPU_KV_CACHE_BYTES = 2**30  # for a served replica
SCRATCH = "VIDALIGN_SCRATCH"  # names the folder of a Ray that this program started, which goes with it
SHARED_GPU = "VIDALIGN_SHARED_GPU"  # "1" in the environment of a replica whose GPU another engine uses too
# On CPUs the model runs eagerly; only a helper for log-probs would be compiled, which would delay its first use by 2 to 30 s.
EAGER = {"TORCHDYNAMO_DISABLE": "1"}
# Of the processes of an endpoint: HTTP, calls to other replicas and engine client share one loop, as in vLLM's server, and the gate
# alone decides how large a request is.
REPLICA_ENVIRONMENT = {
    "grpc_proxy": "",  # the gate asks replicas at their nodes' addresses: a proxy for hosts outside (http_proxy) is not for that
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "-1",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",  # not ten times a second, beside the endpoint's own numbers
}
PLUGIN = "vidalign_video_loader"  # the name of serving.video_loader's entry point in pyproject.toml
ONE_VIDEO = {"video": 1, "image": 0}  # what a prompt holds at most, unless rows hold more


def engine_options(
    dtype: str, max_model_len: int, num_gpus: int, own: Mapping[str, Any], engine_args: Mapping[str, Any]
) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM`: those of all engines, then this engine's `own`, then the user's; later ones win."""
    # By itself, vLLM would load pickled weights where a folder has no others.
    options: dict[str, Any] = {"dtype": dtype, "max_model_len": max_model_len, "load_format": "safetensors"}
    if num_gpus == 0:
        options["enforce_eager"] = True
    else:
        options["gpu_memory_utilization"] = GPU_MEMORY_UTILIZATION
    if num_gpus > 1:
        options["tensor_parallel_size"] = num_gpus
    return {**options, **own, **engine_args}


def generator_options(
    model: ModelConfig,
    num_gpus: int,
    *,
    seed: int,
    engine_args: Mapping[str, Any] | None = None,
    limits: Mapping[str, int] = ONE_VIDEO,
) -> dict[str, Any]:
    """Options for an engine that samples and scores responses to at most `limits` videos and images."""
    own: dict[str, Any] = {
        "limit_mm_per_prompt": dict(limits),
        "trust_remote_code": model.trust_remote_code,
        "seed": seed,
        "enforce_eager": num_gpus == 0,
        "disable_log_stats": True,
    }
    if num_gpus == 0:
        # A prompt that is split over two steps rewinds its seeded generator, which torch's CPU generator cannot do.
        own |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max(model.max_model_len, 4096)}
        # With vLLM's default of 128, short prompts fill no whole block, and the prefix cache finds only whole blocks.
        own["block_size"] = CPU_BLOCK_SIZE
    return engine_options(model.dtype, model.max_model_len, num_gpus, own, engine_args or {})


def with_float32_head(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments with which vLLM computes logits in float32, as training does with `train.float32_head`."""
    given = engine_args.get("hf_overrides") or {}
    return {**engine_args, "hf_overrides": {"head_dtype": "float32", **given}}


def judge_options(config: JudgeConfig) -> dict[str, Any]:
    """Options for a judge's engine, which reads only text."""
    own = {"disable_log_stats": True}
    return engine_options(config.dtype, config.max_model_len, config.num_gpus, own, config.engine_args)


def replica_options(
    model: ModelConfig,
    serve: ServeConfig,
    plan: ServePlan,
    media_io_kwargs: Mapping[str, Any],
    limits: Mapping[str, int] = ONE_VIDEO,
    *,
    rules: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Options for a served engine.

    `media_io_kwargs` says how it samples frames, `limits` what a prompt holds at most, and `rules` what its model needs
    (`vidalign.model.engine_rules`).
    """
    own: dict[str, Any] = {
        "limit_mm_per_prompt": dict(limits),
        "trust_remote_code": model.trust_remote_code,
        "media_io_kwargs": media_io_kwargs,
        # By default the first request with a grammar decides which library makes masks for all later ones, and those that were
        # checked by another library fail.
        "structured_outputs_config": {"backend": "xgrammar"},
        "allowed_local_media_path": str(pathlib.Path(serve.media_root).absolute()) if serve.media_root else "",
    }
    if plan.bundle_gpus:
        own["tensor_parallel_size"] = plan.num_devices
        own["gpu_memory_utilization"] = plan.gpu_memory_utilization
    else:
        own["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    num_gpus = plan.num_devices if plan.bundle_gpus else 0
    return engine_options(model.dtype, model.max_model_len, num_gpus, own, {**(rules or {}), **serve.engine_args})


def engine_environment(on_gpu: bool, *, logging_level: str = "WARNING") -> dict[str, str]:
    """Environment variables that every engine's process needs before vLLM is imported."""
    shared = {"VLLM_LOGGING_LEVEL": logging_level, "VLLM_NO_USAGE_STATS": "1"}
    if scratch := os.environ.get(SCRATCH):
        # What is compiled is kept for the next run.
        compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_{os.getuid()}"
        shared |= {"TMPDIR": scratch, "VLLM_RPC_BASE_PATH": scratch, "TORCHINDUCTOR_CACHE_DIR": compiled}
    # Two engines that are bound to the same cores starve each other.
    return shared if on_gpu else {**shared, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def actor_environment(num_gpus: int) -> dict[str, str]:
    """Environment variables of an actor that runs its engine in its own process: the generator and the judge."""
    shared = {**engine_environment(num_gpus > 0), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    if num_gpus:
        return shared
    return {**shared, "VLLM_CPU_KVCACHE_SPACE": "1", **EAGER}


def enter_actor_environment(num_gpus: int) -> None:
    """Set the variables of `actor_environment` that are not set, in the process of such an actor, before vLLM is imported.

    And leave a working folder that is gone, in which MKL ends the process ("Cannot load …/libtorch_cpu.so"). Raises as
    `require_plugin` does.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")
    require_plugin()
    for name, value in actor_environment(num_gpus).items():
        os.environ.setdefault(name, value)
    tempfile.tempdir = None  # may have been found out already


def replica_environment(plan: ServePlan, media_connector: str, *, logging_level: str = "WARNING") -> dict[str, str]:
    """Environment variables of a served replica. `media_connector` is the name of the connector that reads its urls."""
    return {
        **engine_environment(plan.bundle_gpus > 0, logging_level=logging_level),
        **({} if plan.bundle_gpus else EAGER),
        # vLLM's worker asks for a whole GPU otherwise, and fits into no share of one.
        **({SHARED_GPU: "1", "VLLM_RAY_PER_WORKER_GPUS": f"{plan.bundle_gpus:g}"} if 0 < plan.bundle_gpus < 1 else {}),
        "VLLM_MEDIA_CONNECTOR": media_connector,
        "HF_HUB_OFFLINE": "1",  # checkpoints are local folders
        **REPLICA_ENVIRONMENT,
    }


def require_plugin() -> None:
    """Raise `ModelError` where vLLM would not load our plugin in its processes: without it models that it gets wrong go
    uncorrected, engines outlive who started them, and a served one reads no videos.
    """
    path = f"{PLUGIN} (vllm.general_plugins)"
    if (allowed := os.environ.get("VLLM_PLUGINS")) is not None and PLUGIN not in allowed.split(","):
        raise ModelError(f"VLLM_PLUGINS={allowed} leaves out vidalign's plugin {path}; add its name, or unset the variable")
    if not importlib.metadata.entry_points(group="vllm.general_plugins", name=PLUGIN):
        raise ModelError(
            f"vLLM does not find vidalign's plugin {path}, because the package is not installed here but only found by its path; "
            "run `pip install --no-deps -e .` in its folder"
        )


def takes_video(model_config: Any, path: str) -> None:
    """Raise `ModelError` where vLLM serves a model without videos. `model_config`: vLLM's own of the model folder `path`."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    limits: Mapping[str, int | None] = {}
    if model_config.is_multimodal_model:
        limits = MULTIMODAL_REGISTRY.get_processing_info(model_config).supported_mm_limits
    if limits.get("video", 0) == 0:
        what = f"only {' and '.join(f'{name}s' for name in limits)}" if limits else "only text"
        raise ModelError(
            f"vLLM takes {what} for {path} ({', '.join(model_config.architectures)}), and no videos; use a model of another family, "
            "for example Qwen2.5-VL, Qwen3-VL or LLaVA-OneVision"
        )
