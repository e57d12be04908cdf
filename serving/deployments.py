"""Ray Serve's options for the deployments of an endpoint."""

from __future__ import annotations

import time
from typing import Any

from cluster.resources import ServePlan
from vidalign.config.run import ServeConfig

TARGET_ONGOING_REQUESTS = 32  # requests in flight per replica above which another replica is started
STOP_S, POLL_S = 15.0, 0.2  # for replicas to stop once they have nothing to do; between two looks


def deployment_config(plan: ServePlan, serve: ServeConfig) -> dict[str, Any]:
    """Serve's options for the deployment of one model."""
    return {
        "autoscaling_config": {
            "min_replicas": plan.min_replicas,
            "max_replicas": plan.max_replicas,
            "target_ongoing_requests": TARGET_ONGOING_REQUESTS,
        },
        "ray_actor_options": {"num_cpus": plan.server_cpus},
        "max_ongoing_requests": 2 * serve.limits.max_connections,  # the gate decides
        "max_constructor_retry_count": 1,  # an engine that failed to start would fail again
        **stopping(serve),
    }


def stopping(serve: ServeConfig) -> dict[str, Any]:
    """How a replica that does not work is noticed, and how one that does is stopped."""
    return {
        "health_check_period_s": 5,
        "health_check_timeout_s": 60,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": max(serve.drain_s, 1.0),
    }


def drain(application: str, drain_s: float) -> None:
    """Take an application away once its running requests have ended, or `drain_s` has passed. Serve's proxy stays meanwhile."""
    from ray import serve as ray_serve

    ray_serve.delete(application, _blocking=False)
    deadline = time.monotonic() + drain_s + STOP_S
    while application in ray_serve.status().applications and time.monotonic() < deadline:
        time.sleep(POLL_S)
