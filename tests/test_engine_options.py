"""What each place that starts vLLM gives it: options and environment, pinned; what the user sets wins."""

import tempfile
import tomllib

import pytest
from conftest import ROOT

from cluster.engines import (
    PLUGIN,
    actor_environment,
    generator_options,
    judge_options,
    replica_environment,
    replica_options,
    require_plugin,
)
from cluster.plan import GPU_MEMORY_UTILIZATION
from cluster.resources import ServePlan
from pipelines.checks.model import inspect
from serving.checks import check_files
from serving.video_loader import NAME, media_io_kwargs
from vidalign.config.judging import JudgeConfig
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.errors import ModelError
from vidalign.types import DEFAULT_BACKEND, FrameSpec

MODEL = ModelConfig(path="m", dtype="float16", max_model_len=512, trust_remote_code=True)
SPEC = FrameSpec(num_frames=8, height=56, width=56)

GENERATOR = {
    "dtype": "float16",
    "max_model_len": 512,
    "load_format": "safetensors",
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
JUDGE = {"dtype": "bfloat16", "max_model_len": 256, "load_format": "safetensors", "disable_log_stats": True}
REPLICA = {
    "structured_outputs_config": {"backend": "xgrammar"},
    "dtype": "float16",
    "max_model_len": 512,
    "load_format": "safetensors",
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
    "grpc_proxy": "",
    "VLLM_MEDIA_CONNECTOR": "vidalign",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "-1",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "2000",
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


@pytest.mark.parametrize(
    ("num_gpus", "more"),
    [
        (0, GENERATOR_CPU),
        (1, {"enforce_eager": False, "gpu_memory_utilization": 0.9}),
        (4, {"enforce_eager": False, "gpu_memory_utilization": 0.9, "tensor_parallel_size": 4}),
    ],
)
def test_the_generators_engine(num_gpus, more):
    assert generator_options(MODEL, num_gpus, seed=3) == GENERATOR | more
    given = {"dtype": "float32", "max_num_seqs": 2, "enforce_eager": None}
    assert generator_options(MODEL, num_gpus, seed=3, engine_args=given) == GENERATOR | more | given
    assert not num_gpus or more["gpu_memory_utilization"] == GPU_MEMORY_UTILIZATION, "what a dry run counts with"
    assert actor_environment(num_gpus) == ACTOR_ENVIRONMENT | ({} if num_gpus else ACTOR_ENVIRONMENT_CPU)


@pytest.mark.parametrize(
    ("num_gpus", "more"),
    [
        (0, {"enforce_eager": True}),
        (1, {"gpu_memory_utilization": 0.9}),
        (2, {"gpu_memory_utilization": 0.9, "tensor_parallel_size": 2}),
    ],
)
def test_the_judges_engine(num_gpus, more):
    for given in ({}, {"disable_log_stats": False, "seed": 1, "enforce_eager": None}):
        config = JudgeConfig(kind="vllm", model="j", max_model_len=256, num_gpus=num_gpus, engine_args=given)
        assert judge_options(config) == JUDGE | more | given


@pytest.mark.parametrize(
    ("num_devices", "bundle_gpus", "more"),
    [
        (1, 0, {"enforce_eager": True, "kv_cache_memory_bytes": 2**30}),
        (1, 0.5, {"tensor_parallel_size": 1, "gpu_memory_utilization": 0.45}),
        (2, 1, {"tensor_parallel_size": 2, "gpu_memory_utilization": 0.45}),
    ],
)
def test_a_replicas_engine(num_devices, bundle_gpus, more):
    made_for = plan(num_devices, bundle_gpus)
    media = media_io_kwargs(SPEC, DEFAULT_BACKEND)
    assert replica_options(MODEL, ServeConfig(media_root="/films"), made_for, media) == REPLICA | more
    given = {"gpu_memory_utilization": 0.2, "max_model_len": 64, "allowed_local_media_path": "/other"}
    assert replica_options(MODEL, ServeConfig(engine_args=given), made_for, media) == REPLICA | more | given
    assert replica_options(MODEL, ServeConfig(), made_for, media)["allowed_local_media_path"] == ""
    on_cpu = {} if bundle_gpus else {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
    shared = {"VIDALIGN_SHARED_GPU": "1", "VLLM_RAY_PER_WORKER_GPUS": "0.5"} if bundle_gpus == 0.5 else {}
    assert replica_environment(made_for, NAME) == REPLICA_ENVIRONMENT | on_cpu | shared
    loud = replica_environment(made_for, NAME, logging_level="INFO")
    assert loud == REPLICA_ENVIRONMENT | on_cpu | shared | {"VLLM_LOGGING_LEVEL": "INFO"}


def test_engines_of_a_ray_that_is_started_here_leave_nothing_in_the_systems_folder(monkeypatch, short_folder):
    from cluster.session import own_scratch

    for name in ("VIDALIGN_SCRATCH", "TORCHINDUCTOR_CACHE_DIR"):  # torch itself sets the latter
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(short_folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert "TMPDIR" not in actor_environment(0)
    with own_scratch() as folder:
        (folder / "socket").touch()
        assert folder.parent == short_folder
        for found in (actor_environment(0), actor_environment(1), replica_environment(plan(1, 0), NAME)):
            assert (found["TMPDIR"], found["VLLM_RPC_BASE_PATH"]) == (str(folder), str(folder))
            assert found["TORCHINDUCTOR_CACHE_DIR"].startswith(f"{short_folder}/torchinductor_"), "what is compiled is kept"
    assert list(short_folder.iterdir()) == []
    assert "TMPDIR" not in actor_environment(0)


@pytest.mark.parametrize("named", [None, "vidalign_video_loader", "other,vidalign_video_loader"])
def test_an_engine_starts_where_vllm_loads_the_plugin(monkeypatch, named):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if named is not None:
        monkeypatch.setenv("VLLM_PLUGINS", named)
    require_plugin()


@pytest.mark.parametrize("named", ["", "other", "vidalign"])
def test_an_engine_without_the_plugin_is_refused(monkeypatch, named):
    monkeypatch.setenv("VLLM_PLUGINS", named)
    with pytest.raises(
        ModelError, match=rf"^VLLM_PLUGINS={named} leaves out vidalign's plugin vidalign_video_loader .*; add its name"
    ):
        require_plugin()


def test_a_run_and_an_endpoint_without_the_plugin_are_refused_before_anything_starts(monkeypatch, model_path):
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(ModelError, match=r"^VLLM_PLUGINS=other leaves out"):
        inspect(ModelConfig(path=model_path, dtype="float32", max_model_len=512), ask_vllm=False)
    with pytest.raises(ModelError, match=r"^VLLM_PLUGINS=other leaves out"):
        check_files({}, ServeConfig())


def test_an_engine_of_a_package_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    with pytest.raises(
        ModelError, match=r"the package is not installed here .*; run `pip install --no-deps -e \.` in its folder$"
    ):
        require_plugin()


def test_the_plugin_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["vllm.general_plugins"] == {PLUGIN: "serving.video_loader:register"}
