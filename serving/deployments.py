"""The deployments of an endpoint: Ray Serve's options, what the gate knows of their policies, and their end."""

from __future__ import annotations

import time
from typing import Any

from cluster.resources import ServePlan
from serving.chat_rules import ChatRules
from serving.request_rules import Served
from serving.spec import EndpointSpec
from vidalign.config.run import ServeConfig
from vidalign.types import PolicyVersion

MAX_STARTS = 3  # of replicas whose processes are killed; one that fails in words is not tried again (serving/readiness.py)
STOP_S, POLL_S = 15.0, 0.2  # for replicas to stop once they have nothing to do; between two looks


def deployment_config(plan: ServePlan, serve: ServeConfig) -> dict[str, Any]:
    """Serve's options for the deployment of one model.

    A model that may sleep is awake at first, else nobody would know whether it can start.
    """
    return {
        "autoscaling_config": {
            "min_replicas": plan.min_replicas,
            "max_replicas": plan.max_replicas,
            "initial_replicas": max(1, plan.min_replicas),
            **serve.autoscaling.model_dump(exclude={"cold_start_s"}),
        },
        "ray_actor_options": {"num_cpus": plan.server_cpus},
        "max_ongoing_requests": 2 * serve.limits.max_connections,  # the gate decides
        "max_constructor_retry_count": MAX_STARTS,
        **stopping(serve),
    }


def stopping(serve: ServeConfig) -> dict[str, Any]:
    """How a replica that does not work is noticed, and how one that does is stopped; and no log of requests beside the endpoint's."""
    return {
        "logging_config": {"enable_access_log": False},
        "health_check_period_s": 5,
        "health_check_timeout_s": 60,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": max(serve.drain_s, 1.0),
    }


def served(spec: EndpointSpec, policy: PolicyVersion) -> Served:
    """What the gate knows of a policy."""
    limits = spec.serve.engine_args.get("limit_mm_per_prompt", spec.limits)
    return Served(
        version=policy.version,
        parent=policy.parent,
        rules=ChatRules.of(policy.path, trust_remote_code=spec.model.trust_remote_code),
        frame_spec=spec.frame_spec,
        media={name: _count(most) for name, most in limits.items()},
        max_model_len=spec.serve.engine_args.get("max_model_len", spec.model.max_model_len),
        plain_prompt=spec.plain_prompt,
        client_sampling=spec.serve.client_sampling,
        frames_fps=spec.serve.media.frames_fps,
    )


def _count(most: Any) -> int:
    """How many a prompt may have: vLLM takes a number, or a mapping with it."""
    return most if isinstance(most, int) else most.get("count", 1)


def video_limit(spec: EndpointSpec) -> int:
    """How many videos a prompt may have."""
    return _count(spec.serve.engine_args.get("limit_mm_per_prompt", spec.limits).get("video", 1))


def drain(application: str, drain_s: float) -> None:
    """Take an application away once its running requests have ended, or `drain_s` has passed. Serve's proxy stays meanwhile."""
    from ray import serve as ray_serve

    ray_serve.delete(application, _blocking=False)
    deadline = time.monotonic() + drain_s + STOP_S
    while application in ray_serve.status().applications and time.monotonic() < deadline:
        time.sleep(POLL_S)
