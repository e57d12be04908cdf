"""The OpenAI endpoint: Ray Serve's own LLM application over vLLM, one deployment for each served policy.

    client ── HTTP ── HAProxy ── gate, PolicyServer "model"          one policy: both in one replica (1..n of them)

    client ── HTTP ── HAProxy ── gate, PolicyIngress ─┬─ PolicyServer "base"      several, or one that may sleep: the gate in
                                                      └─ PolicyServer "aligned"   a process that knows where each is (versions.py)

`endpoint(...)` starts it, waits until it answers, and shuts it down again. Everything that a client sends passes serving/gate.py;
serving/media.py decides which urls are read; serving/proxy.py decides what listens on the port, HAProxy or Serve's own proxy.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cluster.engines import REPLICA_ENVIRONMENT, replica_environment, replica_options
from serving import forms, frames, table_store, video_loader
from serving.access import hash_of, new_key
from serving.adapters import engine_options
from serving.checks import check_address, check_files
from serving.decoders import MediaOptions
from serving.deployments import deployment_config, drain, served, stopping, video_limit
from serving.gates import GateOptions
from serving.leftovers import application_name, cared_for, clear_leftovers
from serving.proxy import BINARY, haproxy_folder, haproxy_said, proxy_environment, uses_haproxy, write_haproxy_script
from serving.readiness import wait_until_ready
from serving.spec import EndpointSpec
from serving.versions import BASE, POLICY, PREFIX
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.errors import ClusterError
from vidalign.types import FrameSpec, PolicyVersion
from vidalign.video import relevance

if TYPE_CHECKING:
    from ray.serve import Application

NO_KEY = "none"  # what clients send where no key is needed, since they want one


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A running endpoint.

    `base_url` and `api_key` are what an OpenAI client takes; `versions` maps model ids to policy versions; `file:` urls are read
    below `media_root`. `was_ready`: it has answered, and what does not answer any more is being started again.
    """

    base_url: str
    versions: Mapping[str, str]
    media_root: str | None = None
    api_key: str = NO_KEY
    was_ready: bool = False

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The ids of the served models."""
        return tuple(self.versions)


@contextlib.contextmanager
def endpoint(
    spec: EndpointSpec,
    *,
    on_wait: Callable[[float, str], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Endpoint]:
    """Serve the models of `spec` over HTTP for the duration of a `with` block. Ray must be connected.

    Args:
        on_wait: called about once a second during the start, with the seconds that have passed and what is not there yet.
        say: called with a line for the console where a replica waits for a node.

    Raises:
        ModelError: a policy folder is not a checkpoint, or vLLM cannot serve it.
        ClusterError: the port is taken, Serve is already running, a replica found no node in `spec.wait_for_nodes_s`, or the
            endpoint did not start in `serve.start_timeout_s`.
    """
    serve = spec.serve
    check_can_start(spec.models, serve)
    if uses_haproxy(serve, spec.plan):
        write_haproxy_script(serve, spec.plan)
    environment = proxy_environment(serve, spec.plan)
    own_key = new_key() if serve.access.keys_file else ""
    # Serve reads it when it is imported. HAProxy's command is of this endpoint alone, and started by Serve's controller.
    added = {name: value for name, value in environment.items() if name != BINARY and name not in os.environ}
    os.environ.update(added)
    from ray import serve as ray_serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    started_at, care = time.monotonic(), contextlib.ExitStack()
    try:
        care.enter_context(cared_for())
        # Building the app imports vLLM, which takes as long as Serve's own processes take to start, so both run side by side.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            starting = pool.submit(
                ray_serve.start,
                proxy_location="HeadOnly",
                http_options={"host": serve.host, "port": serve.port},
                controller_options={"runtime_env": {"env_vars": environment}},
            )
            apps = _applications(spec, hash_of(own_key) if own_key else "")
            with haproxy_said():
                starting.result()
        targets = [ray_serve.RunTarget(app, name=name, route_prefix=route) for name, (app, route) in apps.items()]
        ray_serve.run_many(targets, wait_for_applications_running=False)
        running = Endpoint(
            base_url=f"http://{_reachable(serve.host)}:{serve.port}/v1",
            versions={model_id: policy.version for model_id, policy in spec.models.items()},
            media_root=serve.media_root,
            api_key=own_key or NO_KEY,
        )
        wait_until_ready(
            list(apps),
            running.base_url,
            running.model_ids,
            api_key=running.api_key,
            started_at=started_at,
            timeout_s=serve.start_timeout_s,
            wait_for_nodes_s=spec.wait_for_nodes_s,
            on_wait=on_wait,
            say=say,
        )
        try:
            yield dataclasses.replace(running, was_ready=True)
        finally:
            drain(application_name(), serve.drain_s)  # its versions go with Serve, once nobody can ask them
    finally:
        ray_serve.shutdown()
        care.close()
        table_store.forget(application_name())
        for name in added:  # else an endpoint of a process that this one starts would take them for the user's
            os.environ.pop(name, None)
        shutil.rmtree(haproxy_folder(), ignore_errors=True)


def check_can_start(models: Mapping[str, PolicyVersion], serve: ServeConfig) -> None:
    """Find what would prevent the endpoint from starting, before anything is started. Raises as `endpoint` does."""
    check_files(models, serve)
    import ray
    from ray import serve as ray_serve

    clear_leftovers()
    running = ray_serve.status().applications if ray.is_initialized() else {}
    if applications := [name for name in running if "@" not in name] or list(running):
        raise ClusterError(
            f"Ray Serve is already running {', '.join(sorted(applications))} on this cluster; stop it with `serve shutdown` or "
            "use another cluster"
        )
    check_address(serve)


def _applications(spec: EndpointSpec, own_hash: str) -> dict[str, tuple[Application, str | None]]:
    """The applications of an endpoint and their routes, by their names. The policy whose versions change is one of its own."""
    from ray.serve.llm import LLMConfig, build_llm_deployment

    name = application_name()
    policy = spec.models.get(POLICY) if len(spec.models) > 1 and POLICY not in spec.adapters else None
    apart = {} if policy is None else {POLICY: f"{name}@{policy.version}"}
    found: dict[str, tuple[Application, str | None]] = {name: (build_app(spec, own_hash, apart), "/")}
    if policy is not None:
        config = LLMConfig(**llm_options(spec, POLICY, policy))
        found[apart[POLICY]] = (build_llm_deployment(config, name_prefix=PREFIX), None)
    return found


def build_app(spec: EndpointSpec, own_hash: str = "", apart: Mapping[str, str] | None = None) -> Application:
    """The Serve application of `endpoint`, not yet deployed. Imports vLLM.

    `apart`: model id → the application of a model that is not in this one.
    """
    from ray import serve as ray_serve
    from ray.serve.llm import LLMConfig, build_llm_deployment

    from serving.engine import PolicyServer
    from serving.ingress import PolicyIngress

    apart = apart or {}
    engines = {name: policy for name, policy in spec.models.items() if name not in apart and name not in spec.adapters}
    configs = [LLMConfig(**llm_options(spec, name, policy)) for name, policy in engines.items()]
    models = {name: served(spec, policy) for name, policy in spec.models.items()}
    if len(models) == 1 and spec.plan.min_replicas > 0:  # one that sleeps cannot say that it is being woken
        options = GateOptions(models=models, serve=spec.serve, own_hash=own_hash)
        return build_llm_deployment(
            configs[0], deployment_cls=ray_serve.ingress()(PolicyServer), bind_kwargs={"options": options}
        )
    options = GateOptions(
        models=models,
        serve=spec.serve,
        own_hash=own_hash,
        capacity=spec.plan.max_replicas,
        id=secrets.token_hex(8),
        spec=spec,
        apart=apart,
    )
    ingress = ray_serve.deployment(ray_serve.ingress()(PolicyIngress), name="PolicyIngress").options(
        num_replicas=1,
        max_ongoing_requests=2 * spec.serve.limits.max_connections,  # the gate decides
        ray_actor_options={"num_cpus": spec.plan.ingress_cpus, "runtime_env": {"env_vars": REPLICA_ENVIRONMENT}},
        **stopping(spec.serve),
    )
    servers = {config.model_id: build_llm_deployment(config, name_prefix=PREFIX) for config in configs}
    return ingress.bind(servers, options=options)


def llm_options(spec: EndpointSpec, model_id: str, policy: PolicyVersion) -> dict[str, Any]:
    """Ray's `LLMConfig` of one served policy, as keyword arguments."""
    num_videos = video_limit(spec)
    if spec.frame_spec.choice is not None:
        relevance.check(spec.frame_spec.choice.relevance)
    frame_spec = bounded(spec.frame_spec, policy.path, spec.model, num_videos)
    media_io_kwargs = video_loader.media_io_kwargs(frame_spec, spec.decoder)
    rules = _rules(spec, policy)
    if model_id == BASE and spec.adapters:
        rules |= engine_options(spec.adapters)
    engine_kwargs = replica_options(spec.model, spec.serve, spec.plan, media_io_kwargs, spec.limits, rules=rules)
    logging_level = os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")
    environment = replica_environment(spec.plan, video_loader.NAME, logging_level=logging_level)
    environment |= frames.model_variable(str(pathlib.Path(policy.path).absolute()), spec.model)
    environment |= {forms.VARIABLE: f"{spec.serve.limits.form_s:g}"}
    environment |= MediaOptions(
        media=spec.serve.media, deadline_s=spec.deadline_s, num_decoders=spec.num_decoders
    ).environment()
    return {
        "model_loading_config": {"model_id": model_id, "model_source": str(pathlib.Path(policy.path).absolute())},
        "engine_kwargs": {**engine_kwargs, "fingerprint_mode": "custom", "fingerprint_value": policy.version},
        "placement_group_config": {"bundle_per_worker": spec.plan.bundle(), "strategy": "STRICT_PACK"},
        "deployment_config": deployment_config(spec.plan, spec.serve),
        "runtime_env": {"env_vars": environment},
        "callback_config": {
            "callback_class": "serving.engine.LocalCheckpoint",
            "callback_kwargs": {"model_path": spec.model.path, "folder": str(pathlib.Path(policy.path).absolute())},
        },
        "server_cls": "serving.engine.PolicyServer",
    }


def _rules(spec: EndpointSpec, policy: PolicyVersion) -> dict[str, Any]:
    """What the generator tells vLLM about this model too."""
    from transformers import AutoConfig

    from vidalign.model.engine_rules import engine_rules
    from vidalign.model.rendering import load_processor

    trusted = {"trust_remote_code": spec.model.trust_remote_code}
    return engine_rules(
        load_processor(policy.path, **trusted),
        AutoConfig.from_pretrained(policy.path, **trusted),
        dtype=spec.model.dtype,
        max_model_len=spec.model.max_model_len,
        on_cpu=spec.plan.bundle_gpus == 0,
        limits=spec.limits,
    )


def bounded(spec: FrameSpec, path: str, model: ModelConfig, num_videos: int = 1) -> FrameSpec:
    """The sampling of an endpoint, which refuses videos that are too long for the model's positions: they would end its engine.

    The videos of a prompt count together, so each of `num_videos` gets its share.
    """
    from transformers import AutoConfig

    from vidalign.model.positions import longest_video_s

    config = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    longest = longest_video_s(config, model.max_model_len) / max(1, num_videos)
    return dataclasses.replace(spec, max_duration_s=min(spec.max_duration_s, longest))


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
