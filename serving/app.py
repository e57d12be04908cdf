"""The OpenAI endpoint: Ray Serve's own LLM application over vLLM, one deployment for each served policy.

    client ── HTTP ── HAProxy ── PolicyServer "model"        one policy: HTTP and vLLM in one replica (1..n of them)

    client ── HTTP ── HAProxy ── PolicyIngress ─┬─ PolicyServer "base"      several: one more process between, which knows
                                                └─ PolicyServer "aligned"   where each is

`endpoint(...)` starts it, waits until it answers, and takes it down again. Who may send what: serving/media.py. Where HAProxy cannot
be: serving/proxy.py.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cluster.plan import ServePlan
from serving import video_loader
from serving.proxy import haproxy_folder, proxy_environment
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.errors import ClusterError, ModelError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec, PolicyVersion

if TYPE_CHECKING:
    from ray.serve import Application

APPLICATION = "vidalign"
TARGET_ONGOING_REQUESTS = 32  # requests in flight for each replica, above which another replica is started
POLL_S = 1.0
_RAISED = re.compile(r"[\w.]*(Error|Exception): ")  # the line of a traceback that names the exception
CPU_KV_CACHE_BYTES = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running endpoint.

    `base_url` is what an OpenAI client takes; `versions` maps model ids to policy versions; `file:` urls are read below
    `media_root`.
    """

    base_url: str
    versions: Mapping[str, str]
    media_root: str | None = None

    @property
    def model_ids(self) -> tuple[str, ...]:
        return tuple(self.versions)


@contextlib.contextmanager
def endpoint(
    models: Mapping[str, PolicyVersion],
    *,
    model: ModelConfig,
    serve: ServeConfig,
    plan: ServePlan,
    frame_spec: FrameSpec,
    decoder: Backend = DEFAULT_BACKEND,
    on_wait: Callable[[float], None] | None = None,
) -> Iterator[Endpoint]:
    """Serve `models` (model id → policy) over HTTP for the length of a `with` block. Ray must have been entered.

    Args:
        plan: replicas and their resources, see `cluster.plan`.
        frame_spec: how the frames of every video are sampled.
        decoder: "pyav" or "decord".
        on_wait: called about once a second while starting, with the seconds that have passed.

    Raises:
        ModelError: a policy folder is no checkpoint, or vLLM cannot serve it.
        ClusterError: the port is taken, Serve runs already, or the endpoint did not start in `serve.start_timeout_s`.
    """
    check_can_start(models, serve)
    environment = proxy_environment(serve.host, plan)
    os.environ.update(environment)  # Serve reads it when it is imported
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    started_at = time.monotonic()
    try:
        # Building imports vLLM, which takes as long as Serve's own processes: side by side.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            starting = pool.submit(
                ray_serve.start,
                proxy_location="HeadOnly",
                http_options={"host": serve.host, "port": serve.port},
                controller_options={"runtime_env": {"env_vars": environment}},
            )
            app = build_app(models, model=model, serve=serve, plan=plan, frame_spec=frame_spec, decoder=decoder)
            starting.result()
        ray_serve.run_many([ray_serve.RunTarget(app, name=APPLICATION)], wait_for_applications_running=False)
        running = Endpoint(
            base_url=f"http://{_reachable(serve.host)}:{serve.port}/v1",
            versions={model_id: policy.version for model_id, policy in models.items()},
            media_root=serve.media_root,
        )
        _wait_until_ready(running, started_at, serve.start_timeout_s, on_wait)
        yield running
    finally:
        ray_serve.shutdown()
        shutil.rmtree(haproxy_folder(), ignore_errors=True)


def check_can_start(models: Mapping[str, PolicyVersion], serve: ServeConfig) -> None:
    """Find what would stop the endpoint before anything is started."""
    for model_id, policy in models.items():
        folder = pathlib.Path(policy.path)
        if not folder.is_dir():
            raise ModelError(f"model {model_id!r} is to be served from {policy.path}, which is not a folder")
        if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"{policy.path} is no Hugging Face checkpoint: config.json and *.safetensors are needed; `vidalign train` "
                "exports such folders to rounds/N/model"
            )
    if serve.media_root is not None and not pathlib.Path(serve.media_root).is_dir():
        raise ClusterError(f"serve.media_root={serve.media_root} is not a folder; file: urls are read from below it")
    import ray
    from ray import serve as ray_serve

    applications = ray_serve.status().applications if ray.is_initialized() else {}
    if applications:
        raise ClusterError(
            f"Ray Serve already runs {', '.join(sorted(applications))} on this cluster; stop it with `serve shutdown` or "
            "use another cluster"
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((serve.host, serve.port))
        except OSError as error:
            raise ClusterError(
                f"port {serve.port} of {serve.host} cannot be listened on ({error.strerror}); choose another with serve.port"
            ) from error


def build_app(
    models: Mapping[str, PolicyVersion],
    *,
    model: ModelConfig,
    serve: ServeConfig,
    plan: ServePlan,
    frame_spec: FrameSpec,
    decoder: Backend = DEFAULT_BACKEND,
) -> Application:
    """The Serve application of `endpoint`, not yet deployed. Imports vLLM."""
    from ray import serve as ray_serve
    from ray.serve.llm import LLMConfig, build_llm_deployment, build_openai_app

    kwargs = engine_kwargs(model, serve, plan, frame_spec, decoder)
    configs = []
    for model_id, policy in models.items():
        path = str(pathlib.Path(policy.path).absolute())
        options: dict[str, Any] = {
            "model_loading_config": {"model_id": model_id, "model_source": path},
            "engine_kwargs": {**kwargs, "fingerprint_mode": "custom", "fingerprint_value": policy.version},
            "placement_group_config": {"bundle_per_worker": plan.bundle()},
            "deployment_config": deployment_config(plan),
            "runtime_env": {"env_vars": engine_environment(plan)},
            "callback_config": {"callback_class": "serving.engine.LocalCheckpoint"},
            "server_cls": "serving.engine.PolicyServer",
        }
        configs.append(LLMConfig(**options))
    policies = {
        model_id: {"policy_version": policy.version, "parent": policy.parent, "frame_spec": frame_spec.to_row()}
        for model_id, policy in models.items()
    }
    if len(configs) == 1:
        from serving.engine import PolicyServer

        return build_llm_deployment(
            configs[0],
            deployment_cls=ray_serve.ingress()(PolicyServer),
            bind_kwargs={"policy": policies[configs[0].model_id]},
        )
    return build_openai_app(
        {
            "llm_configs": configs,
            "ingress_cls_config": {
                "ingress_cls": "serving.ingress.PolicyIngress",
                "ingress_extra_kwargs": {"policies": policies},
            },
            "ingress_deployment_config": {
                "num_replicas": 1,
                "autoscaling_config": None,
                "ray_actor_options": {"num_cpus": plan.ingress_cpus},
            },
        }
    )


def engine_kwargs(
    model: ModelConfig, serve: ServeConfig, plan: ServePlan, frame_spec: FrameSpec, decoder: Backend
) -> dict[str, Any]:
    """vLLM's engine arguments; `serve.engine_args` win over ours."""
    kwargs: dict[str, Any] = {
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "trust_remote_code": model.trust_remote_code,
        "limit_mm_per_prompt": {"video": 1, "image": 0},
        "media_io_kwargs": video_loader.media_io_kwargs(frame_spec, decoder),
        "allowed_local_media_path": str(pathlib.Path(serve.media_root).absolute()) if serve.media_root else "",
    }
    if plan.bundle_gpus:
        kwargs["tensor_parallel_size"] = plan.num_devices
        kwargs["gpu_memory_utilization"] = plan.gpu_memory_utilization
    else:
        kwargs["enforce_eager"] = True
        kwargs["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
    return {**kwargs, **serve.engine_args}


def engine_environment(plan: ServePlan) -> dict[str, str]:
    """Environment of the processes that hold an engine."""
    environment = {
        "VLLM_MEDIA_CONNECTOR": video_loader.NAME,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "HF_HUB_OFFLINE": "1",  # checkpoints are local folders
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # HTTP and the engine's client in one event loop, as in vLLM's server
    }
    if not plan.bundle_gpus:
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # two engines bound to the same cores starve each other
    return environment


def deployment_config(plan: ServePlan) -> dict[str, Any]:
    """Serve's options of one model's deployment."""
    return {
        "autoscaling_config": {
            "min_replicas": plan.min_replicas,
            "max_replicas": plan.max_replicas,
            "target_ongoing_requests": TARGET_ONGOING_REQUESTS,
        },
        "ray_actor_options": {"num_cpus": plan.server_cpus},
        "max_constructor_retry_count": 1,  # what stops an engine from starting stops it again
        "health_check_period_s": 30,
        "health_check_timeout_s": 60,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": 10,
    }


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)


def _wait_until_ready(
    running: Endpoint, started_at: float, timeout_s: float, on_wait: Callable[[float], None] | None
) -> None:
    """Return once every model is listed over HTTP; raise when a replica cannot start or the time is up."""
    from ray import serve as ray_serve

    while True:
        status = ray_serve.status().applications[APPLICATION]
        if status.status == "DEPLOY_FAILED":
            raise _start_failure(status)
        if status.status == "RUNNING" and set(running.model_ids) <= _listed_models(running.base_url):
            return
        elapsed = time.monotonic() - started_at
        if elapsed > timeout_s:
            details = "; ".join(
                f"{name}: {deployment.status} {failure_reason(deployment.message)}".strip()
                for name, deployment in status.deployments.items()
            )
            raise ClusterError(
                f"the endpoint did not start within serve.start_timeout_s={timeout_s:g} s ({details}); raise it, or see "
                "`ray status` for resources that are missing"
            )
        if on_wait is not None:
            on_wait(elapsed)
        time.sleep(POLL_S)


def _listed_models(base_url: str) -> set[str]:
    try:
        with urllib.request.urlopen(f"{base_url}/models", timeout=10) as response:
            return {card["id"] for card in json.load(response)["data"]}
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return set()  # the proxy learns of its routes a moment after the application runs


def _start_failure(status: Any) -> ModelError:
    logs = "Ray's logs (by default /tmp/ray/session_latest/logs) have the rest"
    for name, deployment in status.deployments.items():
        if deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            return ModelError(
                f"{name.partition(':')[2] or name} cannot be served: {failure_reason(deployment.message)}; {logs}"
            )
    return ModelError(f"the endpoint cannot be started: {failure_reason(status.message)}; {logs}")


def failure_reason(message: str, most: int = 300) -> str:
    """The exception at the end of the traceback in a Serve status message, on one line of at most `most` characters."""
    lines = [line for line in message.splitlines() if line.strip() and "For further information" not in line]
    raised = [index for index, line in enumerate(lines) if _RAISED.match(line)]
    text = " ".join(" ".join(lines[raised[-1] if raised else -1 :]).split())
    return text if len(text) <= most else text[:most] + " …"
