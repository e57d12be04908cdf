"""Ray Serve's options for the deployments of an endpoint."""

from __future__ import annotations

from typing import Any

from cluster.resources import ServePlan
from vidalign.config.run import ServeConfig

TARGET_ONGOING_REQUESTS = 32  # requests in flight per replica above which another replica is started


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
