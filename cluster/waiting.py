"""One deadline on every wait for nodes: what waits to be placed, for how long, and what the autoscaler answers.

    cluster/placement.py: what no node takes ─► PlacementWatch ─► a line on the console
                                                              └► the run's end, in words

Ray itself waits for ever and says so only in its log files.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.placement import Unplaced, unplaced
from cluster.resources import Workers, count, listed
from cluster.session import cluster_resources
from vidalign.errors import ClusterError, VidalignError

LOOK_EVERY_S = 5.0
SAY_AFTER_S = 20.0
SAY_EVERY_S = 120.0
GONE_AFTER_S = 15.0  # Ray Train gives its request up and makes it again, which is still the same wait
TRAIN_START = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
ASK_ANEW_S = 10.0


class PlacementWatch:
    """Decides from what is unplaced when something is said, and when the run is over.

    Args:
        limit_s: how long anything may wait.
        say: called with a line for the console.
        stop: called with the error that ends the run.
    """

    def __init__(
        self,
        limit_s: float,
        *,
        answer: Callable[[], str],
        say: Callable[[str], None],
        stop: Callable[[VidalignError], None],
    ) -> None:
        self._limit_s, self._answer, self._say, self._stop = limit_s, answer, say, stop
        self._since: dict[str, float] = {}
        self._seen: dict[str, float] = {}
        self._said = ("", 0.0)

    def look(self, unplaced: Sequence[Unplaced], now: float) -> None:
        """Take in what is unplaced at the time `now` in seconds."""
        for each in unplaced:
            self._since.setdefault(each.what, now)
            self._seen[each.what] = now
        for what in [what for what, seen in self._seen.items() if now - seen > GONE_AFTER_S]:
            del self._since[what], self._seen[what]
        waiting = [each for each in unplaced if now - self._since[each.what] >= min(SAY_AFTER_S, self._limit_s)]
        if not waiting:
            return
        waited = max(now - self._since[each.what] for each in waiting)
        text, answer = listed([str(each) for each in waiting]), self._answer()
        if waited >= self._limit_s:
            self._stop(
                ClusterError(
                    f"waited {waited:.0f} s for {text}; {answer}. Add nodes, ask for less, or raise cluster.wait_for_nodes_s="
                    f"{self._limit_s:g}, and run the same command again: it continues"
                )
            )
        elif (f"{text} {answer}", True) != (self._said[0], now - self._said[1] < SAY_EVERY_S):
            self._said = f"{text} {answer}", now
            with contextlib.suppress(OSError, ValueError):  # of a console that is gone
                self._say(f"waiting for {text} for {waited:.0f} s; {answer}; cluster.wait_for_nodes_s={self._limit_s:g}")


@contextlib.contextmanager
def placement_watched(
    limit_s: float, *, say: Callable[[str], None], stop: Callable[[VidalignError], None]
) -> Iterator[None]:
    """A block in which nothing of this job waits longer than `limit_s` for a node. Ray must be connected."""
    os.environ.setdefault(TRAIN_START, str(max(60.0, limit_s + 2 * GONE_AFTER_S)))  # so that the watch is first, in words
    watch, over = PlacementWatch(limit_s, answer=cluster_answer, say=say, stop=stop), threading.Event()

    def keep_looking() -> None:
        answered = time.monotonic()
        while not over.wait(LOOK_EVERY_S):
            try:
                found = unplaced()
            except Exception as error:  # Ray does not answer for a moment
                if time.monotonic() - answered >= limit_s:
                    stop(no_answer(error, limit_s))
                continue
            answered = time.monotonic()
            watch.look(found, answered)

    threading.Thread(target=keep_looking, daemon=True, name="placement").start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def ranks_asked_for_anew(is_elastic: bool) -> Iterator[None]:
    """A block in which a training that may have fewer ranks gives up on those that find no node, and looks at the cluster again.

    What Ray Train knows of the cluster is up to 20 s old, so after the loss of a node it asks for as many ranks as before, and would
    wait for them as long as for ranks that must come.
    """
    before = os.environ.get(TRAIN_START)
    if is_elastic:
        os.environ[TRAIN_START] = str(ASK_ANEW_S)
    try:
        yield
    finally:
        os.environ.pop(TRAIN_START, None)
        if before is not None:
            os.environ[TRAIN_START] = before


def times_asked_anew() -> int:
    """How often such a training asks until the deadline of `placement_watched` is over, which then ends it in words."""
    return math.ceil(float(os.environ.get(TRAIN_START, 0.0)) / ASK_ANEW_S)


def no_answer(error: Exception, waited_s: float) -> ClusterError:
    """The end of a run whose cluster does not say what waits."""
    return ClusterError(
        f"Ray's own store has not answered for {waited_s:.0f} s ({' '.join(str(error).split())[:200]}); look at the head node, and "
        "run the same command again: it continues"
    )


def cluster_answer() -> str:
    """What the cluster has, and what its autoscaler does about what waits, as the rest of a sentence."""
    has = cluster_resources()
    parts = [f"{has.num_cpus} CPU", *([f"{has.num_gpus} GPU"] if has.num_gpus else [])]
    return f"the cluster has {' and '.join(parts)} on {count(has.num_nodes, 'node')}; {autoscaler_answer()}"


def autoscaler_answer() -> str:
    """What the cluster's autoscaler does about what waits, as the rest of a sentence."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    with contextlib.suppress(Exception):  # an older autoscaler, or a store that does not answer for a moment
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
        if status.stats.autoscaler_version:
            return answer_of_status(status)
    with contextlib.suppress(Exception):
        from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
        from ray.experimental import internal_kv

        if text := internal_kv._internal_kv_get(DEBUG_AUTOSCALING_STATUS):
            return answer_of_report(json.loads(text))
    return "no autoscaler answers in this cluster, so no nodes will come by themselves"


def answer_of_status(status: Any) -> str:
    """Of a `ray.autoscaler.v2.schema.ClusterStatus`."""
    coming: collections.Counter[str] = collections.Counter()
    for launch in status.pending_launches:
        coming[launch.ray_node_type_name] += launch.count
    for node in status.pending_nodes:
        coming[node.ray_node_type_name] += 1
    failed = [(f"{launch.count} {launch.ray_node_type_name}", launch.details or "") for launch in status.failed_launches]
    return _answer(coming, failed, [node.ray_node_type_name for node in status.failed_nodes])


def answer_of_report(report: Mapping[str, Any]) -> str:
    """Of what Ray's first autoscaler writes into the cluster's store."""
    found = report.get("autoscaler_report") or {}
    coming = collections.Counter(dict(found.get("pending_launches") or {}))
    coming.update(node_type for _, node_type, *_ in found.get("pending_nodes") or ())
    failed = []
    for kind in ((found.get("node_availability_summary") or {}).get("node_availabilities") or {}).values():
        details = kind.get("unavailable_node_information") or {}
        failed.append((str(kind.get("node_type", "")), details.get("description", "")))
    return _answer(coming, failed, [node_type for _, node_type, *_ in found.get("failed_nodes") or ()])


def _answer(coming: Mapping[str, int], failed: Sequence[tuple[str, str]], ended: Sequence[str]) -> str:
    """`ended`: the types of nodes that are gone; that of one that no autoscaler started is made of its id."""
    parts = []
    if ended:
        types = collections.Counter("node" if each.startswith("node_") else each for each in ended)
        parts.append(f"{listed([f'{num} {name}' for name, num in types.items()])} ended")
    if coming:
        parts.append(f"the autoscaler is starting {listed([f'{num} {name}' for name, num in coming.items()])}")
    if failed:
        what, why = failed[-1]
        more = f" (and {count(len(failed) - 1, 'more failure')})" if len(failed) > 1 else ""
        reason = ": " + " ".join(why.split())[:200] if why else ""
        parts.append(f"the autoscaler failed to start {what}{reason}{more}")
    return "; ".join(parts) or "the autoscaler starts nothing for it: no node type has as much, or its limits are reached"


@contextlib.contextmanager
def requested(*groups: Workers, grows: bool) -> Iterator[None]:
    """A block for which the autoscaler is asked at once for nodes with room for all these workers, where the cluster `grows`.

    A request takes the place of the one before it, so blocks do not overlap.
    """
    if not grows:
        yield
        return
    from ray.autoscaler.sdk import request_resources

    request_resources(
        bundles=[
            {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
            for workers in groups
            for _ in range(workers.num)
        ]
    )
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # Ray was left
            request_resources(bundles=[])
