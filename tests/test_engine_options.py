"""What each place that starts vLLM gives it: options and environment, pinned; what the user sets wins."""

import sys
import types

import pytest

from cluster.plan import ServePlan
from vidalign.config.recipes import JudgeConfig
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.types import DEFAULT_BACKEND, FrameSpec

MODEL = ModelConfig(path="m", dtype="float16", max_model_len=512, trust_remote_code=True)
SPEC = FrameSpec(num_frames=8, height=56, width=56)

GENERATOR = {
    "dtype": "float16",
    "max_model_len": 512,
    "trust_remote_code": True,
    "limit_mm_per_prompt": {"video": 1, "image": 0},
    "seed": 3,
    "disable_log_stats": True,
}
GENERATOR_CPU = {
    "enforce_eager": True,
    "enable_chunked_prefill": False,
    "max_num_batched_tokens": 4096,
    "block_size": 32,
}
JUDGE = {"dtype": "bfloat16", "max_model_len": 256, "disable_log_stats": True}
REPLICA = {
    "dtype": "float16",
    "max_model_len": 512,
    "trust_remote_code": True,
    "limit_mm_per_prompt": {"video": 1, "image": 0},
    "media_io_kwargs": {"video": {"video_backend": "vidalign", "decoder": DEFAULT_BACKEND, **SPEC.to_row()}},
    "allowed_local_media_path": "/films",
}
ACTOR_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
ACTOR_ENVIRONMENT_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
}
REPLICA_ENVIRONMENT = {
    "VLLM_MEDIA_CONNECTOR": "vidalign",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
}


def plan(num_devices, bundle_gpus):
    return ServePlan(
        num_models=1,
        min_replicas=1,
        max_replicas=1,
        num_devices=num_devices,
        server_cpus=1,
        bundle_cpus=1,
        bundle_gpus=bundle_gpus,
        ingress_cpus=1,
        gpu_memory_utilization=0.45 if bundle_gpus else None,
        one_node=True,
    )


@pytest.fixture
def started(monkeypatch):
    """The options of every `vllm.LLM` that is made."""
    made = []
    fake = types.ModuleType("vllm")
    fake.LLM = lambda **options: made.append(options)
    fake.SamplingParams = dict
    errors = types.ModuleType("vllm.exceptions")
    errors.VLLMValidationError = ValueError
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, "vllm.exceptions", errors)
    monkeypatch.setattr("vidalign.model.rendering.load_processor", lambda *_, **__: None)
    monkeypatch.setattr("vidalign.model.checkpoint.policy_version", lambda path: types.SimpleNamespace(version=path))
    return made


@pytest.mark.parametrize(
    ("num_gpus", "more"),
    [
        (0, GENERATOR_CPU),
        (1, {"enforce_eager": False}),
        (4, {"enforce_eager": False, "tensor_parallel_size": 4}),
    ],
)
def test_the_generators_engine(started, num_gpus, more):
    from actors.generator import VllmEngine, engine_environment

    VllmEngine(MODEL, "policy", num_gpus=num_gpus, seed=3)
    VllmEngine(MODEL, "policy", num_gpus=num_gpus, seed=3, engine_args={"dtype": "float32", "max_num_seqs": 2})
    assert started == [
        {"model": "policy", **GENERATOR, **more},
        {"model": "policy", **GENERATOR, **more, "dtype": "float32", "max_num_seqs": 2},
    ]
    assert engine_environment(num_gpus) == ACTOR_ENVIRONMENT | ({} if num_gpus else ACTOR_ENVIRONMENT_CPU)


@pytest.mark.parametrize(("num_gpus", "more"), [(0, {"enforce_eager": True}), (1, {}), (2, {"tensor_parallel_size": 2})])
def test_the_judges_engine(started, num_gpus, more):
    from actors.judge import vllm_chat

    for engine_args in ({}, {"disable_log_stats": False, "seed": 1}):
        vllm_chat(JudgeConfig(kind="vllm", model="j", max_model_len=256, num_gpus=num_gpus, engine_args=engine_args))
    assert started == [
        {"model": "j", **JUDGE, **more},
        {"model": "j", **JUDGE, **more, "disable_log_stats": False, "seed": 1},
    ]


@pytest.mark.parametrize(
    ("num_devices", "bundle_gpus", "more"),
    [
        (1, 0, {"enforce_eager": True, "kv_cache_memory_bytes": 2**30}),
        (1, 0.5, {"tensor_parallel_size": 1, "gpu_memory_utilization": 0.45}),
        (2, 1, {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.45}),
    ],
)
def test_a_replicas_engine(monkeypatch, num_devices, bundle_gpus, more):
    from serving.app import engine_environment, engine_kwargs

    made_for = plan(num_devices, bundle_gpus)
    found = engine_kwargs(MODEL, ServeConfig(media_root="/films"), made_for, SPEC, DEFAULT_BACKEND)
    assert found == REPLICA | more
    serve = ServeConfig(engine_args={"gpu_memory_utilization": 0.2, "max_model_len": 64})
    found = engine_kwargs(MODEL, serve, made_for, SPEC, DEFAULT_BACKEND)
    assert found == REPLICA | more | {
        "allowed_local_media_path": "",
        "gpu_memory_utilization": 0.2,
        "max_model_len": 64,
    }
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    on_cpu = {} if bundle_gpus else {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert engine_environment(made_for) == REPLICA_ENVIRONMENT | on_cpu
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    assert engine_environment(made_for) == REPLICA_ENVIRONMENT | on_cpu | {"VLLM_LOGGING_LEVEL": "INFO"}
