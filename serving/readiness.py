"""Waits for an endpoint to answer, or says why it cannot."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Sequence
from typing import Any

from cluster.placement import unplaced_in
from cluster.proxies import reach_directly
from cluster.waiting import PlacementWatch, cluster_answer
from vidalign.errors import ClusterError, ModelError, VidalignError

POLL_S = 1.0
# What Ray Serve says of a replica that failed while it will try again, and of one whose process ended.
_FAILED_ONCE = "A replica failed to start with exception"
_KILLED = "ActorDiedError"
_SERVES_OWN = "/ray/serve/_private/"
_RAISED = re.compile(r"[\w.]*(Error|Exception): ")  # the line of a traceback that names the exception
_FILE = re.compile(r'File "([^"]+)", line')


def wait_until_ready(
    applications: Sequence[str],
    base_url: str,
    model_ids: Collection[str],
    *,
    api_key: str = "none",
    started_at: float,
    timeout_s: float,
    wait_for_nodes_s: float,
    on_wait: Callable[[float, str], None] | None,
    say: Callable[[str], None],
) -> None:
    """Return once every model is listed over HTTP and the endpoint says that it is ready.

    Args:
        applications: the names of its applications in Ray Serve.
        started_at: the `time.monotonic()` from which `timeout_s` counts. While a replica waits for a node, it does not.
        on_wait: called about once a second, with the seconds that have passed and what is not there yet.
        say: called with a line for the console where a replica waits for a node.

    Raises:
        ModelError: a replica cannot start.
        ClusterError: a replica finds no node in `wait_for_nodes_s`, or the endpoint does not answer in time.
    """
    from ray import serve as ray_serve

    watch, began = PlacementWatch(wait_for_nodes_s, answer=cluster_answer, say=say, stop=_end), started_at
    while True:
        if waiting := [each for name in applications for each in unplaced_in(name)]:
            began = time.monotonic()
        watch.look(waiting, time.monotonic())
        found = ray_serve.status().applications
        status = [found[name] for name in applications]
        for each in status:
            if (error := failure_of(each)) is not None:
                raise error
        if all(each.status == "RUNNING" for each in status) and set(model_ids) <= listed_models(base_url, api_key):
            return
        if time.monotonic() - began > timeout_s:
            details = "; ".join(
                f"{name}: {deployment.status} {failure_reason(deployment.message)}".strip()
                for each in status
                for name, deployment in each.deployments.items()
            )
            raise ClusterError(
                f"the endpoint did not start within serve.start_timeout_s={timeout_s:g} s ({details}); raise the timeout, or see "
                "`ray status` for missing resources"
            )
        if on_wait is not None:
            on_wait(time.monotonic() - started_at, unfinished(status))
        time.sleep(POLL_S)


def _end(error: VidalignError) -> None:
    raise error


def listed_models(base_url: str, api_key: str) -> set[str]:
    """The models of an endpoint that is ready; none of one that is not, or does not answer."""
    reach_directly(urllib.parse.urlsplit(base_url).hostname or "")
    headers = {"Authorization": f"Bearer {api_key}"}
    ready, models = (
        urllib.request.Request(url, headers=headers)
        for url in (f"{base_url.removesuffix('/v1')}/ready", f"{base_url}/models")
    )
    try:
        with urllib.request.urlopen(ready, timeout=10), urllib.request.urlopen(models, timeout=10) as response:
            return {card["id"] for card in json.load(response)["data"]}
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return set()  # the proxy learns its routes a moment after the application is running, and the gate which models work


def failure_of(status: Any) -> ModelError | None:
    """Why an application cannot start; None while it starts, also where a process of it was killed or Serve itself failed, and Serve
    starts it again.

    An engine that failed in words would fail again.
    """
    once = any(_failed_in_words(deployment.message) for deployment in status.deployments.values())
    return start_failure(status) if once or status.status == "DEPLOY_FAILED" else None


def _failed_in_words(message: str) -> bool:
    return _FAILED_ONCE in message and _KILLED not in message and not _is_serves_own(message)


def _is_serves_own(message: str) -> bool:
    """Whether an exception was raised by Serve's own code, and not by a model or its engine, whose traceback follows Serve's."""
    raised_in = _FILE.findall(message)
    return bool(raised_in) and _SERVES_OWN in raised_in[-1]


def unfinished(applications: Collection[Any]) -> str:
    """Deployments that are not there yet, each with its failure where Serve starts it again; empty where only HTTP is waited for."""
    parts = []
    for name, deployment in ((name, each) for status in applications for name, each in status.deployments.items()):
        if deployment.status != "HEALTHY":
            failed = _FAILED_ONCE in deployment.message
            parts.append(
                f"{name}, which failed and is started again: {failure_reason(deployment.message)}" if failed else name
            )
    return "; ".join(parts)


def start_failure(status: Any) -> ModelError:
    """The end of a start, with what Ray Serve says of the deployment that failed."""
    logs = "for more, see Ray's logs (by default in /tmp/ray/session_latest/logs)"
    for name, deployment in status.deployments.items():
        model = name.partition(":")[2] or name
        if deployment.status not in ("DEPLOY_FAILED", "UNHEALTHY") and not _failed_in_words(deployment.message):
            continue
        if _is_serves_own(deployment.message):
            return ModelError(
                f"Ray Serve itself failed three times while it started {model}, as where its controller is killed; run the same "
                f"command again: it continues; {logs}"
            )
        return ModelError(f"{model} cannot be served: {failure_reason(deployment.message)}; {logs}")
    return ModelError(f"the endpoint cannot be started: {failure_reason(status.message)}; {logs}")


def failure_reason(message: str, most: int = 300) -> str:
    """The exception at the end of the traceback in a Serve status message, on one line and cut off after `most` characters."""
    lines = [line for line in message.splitlines() if line.strip() and "For further information" not in line]
    raised = [index for index, line in enumerate(lines) if _RAISED.match(line)]
    text = " ".join(" ".join(lines[raised[-1] if raised else -1 :]).split())
    return text if len(text) <= most else text[:most] + " …"
