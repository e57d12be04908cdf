"""Starts, switches and takes down versions of a running endpoint's policy, from a driver beside it.

    fits? ── an application of its own: APPLICATION@VERSION ── ready? ── table ── the ingress has taken it up ── old ones drained

Ray Serve would replace every running deployment where the endpoint's own application is deployed again, so a further version is
an application of its own, without a route, and what runs is not touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.resources import ServePlan
from serving import table_store
from serving.app import llm_options
from serving.deployments import drain, served
from serving.promotion_log import now
from serving.readiness import failure_of
from serving.spec import EndpointSpec
from serving.table_store import Seen
from serving.versions import BASE, LEAVING, POLICY, PREFIX, Row, Table, deployment_of
from vidalign.errors import ClusterError, ModelError, VidalignError
from vidalign.types import PolicyVersion

POLL_S = 0.2
TAKEN_UP_S = 60.0  # for the ingress to take up a table; it looks twice a second, but may just be starting again


def to_make_room(nodes: Sequence[Mapping[str, float]], plan: ServePlan, idle: Sequence[Row]) -> list[Row] | None:
    """Which versions that answer nobody by default have to go, so that one more fits; None where that is not enough.

    `nodes`: the free resources of each. A replica is whole on one node, and one that goes leaves its place.
    """
    need = needed(plan)
    copies = max(1, plan.min_replicas)
    places = sum(
        min((int((node.get(name, 0.0) + 1e-6) / number) for name, number in need.items() if number), default=copies)
        for node in nodes
    )
    for number in range(len(idle) + 1):
        if places + number * copies >= copies:
            return list(idle[:number])
    return None


def needed(plan: ServePlan) -> dict[str, float]:
    """What one replica takes of its node."""
    return {"CPU": plan.server_cpus + plan.num_devices * plan.bundle_cpus, "GPU": plan.num_devices * plan.bundle_gpus}


def make_room(plan: ServePlan, idle: Sequence[Row], *, grows: bool) -> list[Row]:
    """As `to_make_room` of the connected cluster. Raises `ClusterError` where there is no room to make and no more to come."""
    import ray._private.state

    nodes = list(ray._private.state.available_resources_per_node().values())
    rows = to_make_room(nodes, plan, idle)
    if rows is not None or grows:
        return rows or []
    need = " and ".join(f"{number:g} {name}s" for name, number in needed(plan).items() if number)
    free = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
    raise ClusterError(
        f"a further version needs {need} on one node for each of {max(1, plan.min_replicas)} replicas, and free are {free}; add a "
        "node, or start the endpoint with serve.further_versions=1, which leaves room for one"
    )


def clear_orphans(application: str, table: Table) -> None:
    """Take down what a command that was killed has started and not entered into the table."""
    from ray import serve as ray_serve

    known = {row.application for row in table.rows}
    for name in ray_serve.status().applications:
        if name.startswith(f"{application}@") and name not in known:
            ray_serve.delete(name)


def start(application: str, spec: EndpointSpec, policy: PolicyVersion, plain_prompt: str) -> Row:
    """Start a version beside the endpoint and return its row, whose state is still to be decided.

    Raises:
        ModelError, ClusterError: it cannot start, or not within `serve.start_timeout_s`; nothing of it is left then.
    """
    name = f"{application}@{policy.version}"
    spec = dataclasses.replace(spec, plain_prompt=plain_prompt)
    row = Row(
        target=f"{POLICY}@{policy.version}",
        model_id=POLICY,
        served=served(spec, policy),
        application=name,
        deployment=deployment_of(POLICY),
    )
    try:
        options = llm_options(spec, POLICY, policy)
    except (OSError, ValueError) as error:
        if isinstance(error, VidalignError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{policy.path} cannot be served ({reason}); export the round again") from error
    from ray import serve as ray_serve
    from ray.serve.llm import LLMConfig, build_llm_deployment  # which imports vLLM

    app = build_llm_deployment(LLMConfig(**options), name_prefix=PREFIX)
    started_at = time.monotonic()
    try:
        ray_serve.run_many([ray_serve.RunTarget(app, name=name, route_prefix=None)], wait_for_applications_running=False)
        _wait_until_running(application, name, spec, started_at)
    except BaseException:
        ray_serve.delete(name, _blocking=False)
        raise
    return dataclasses.replace(row, since=now())


def attach(application: str, spec: EndpointSpec, policy: PolicyVersion, plain_prompt: str, adapter: str) -> Row:
    """Let the base's engine load a version's adapter and return its row, whose state is still to be decided.

    Raises:
        ModelError: it cannot be loaded, or changes nothing.
        ClusterError: the base's engine does not answer in `serve.start_timeout_s`.
    """
    from ray import serve as ray_serve

    row = Row(
        target=f"{POLICY}@{policy.version}",
        model_id=POLICY,
        served=served(dataclasses.replace(spec, plain_prompt=plain_prompt), policy),
        deployment=deployment_of(BASE),
        adapter=adapter,
        since=now(),
    )
    handle = ray_serve.get_deployment_handle(row.deployment, application)
    try:
        why = handle.load_adapter.remote(row.exact_id, adapter).result(timeout_s=spec.serve.start_timeout_s)
    except TimeoutError:
        raise ClusterError(
            f"the base's engine did not load {adapter} within serve.start_timeout_s={spec.serve.start_timeout_s:g} s; look at the "
            "endpoint's /health"
        ) from None
    if why:
        raise ModelError(f"the adapter {adapter} cannot be served: {why}; export the round again")
    return row


def _wait_until_running(application: str, name: str, spec: EndpointSpec, started_at: float) -> None:
    from ray import serve as ray_serve

    while True:
        found = ray_serve.status().applications
        if application not in found:
            raise ClusterError("the endpoint has ended meanwhile; start it again with `vidalign serve`")
        status = found.get(name)
        if status is not None and (error := failure_of(status)) is not None:
            raise error
        if status is not None and status.status == "RUNNING":
            return
        elapsed = time.monotonic() - started_at
        if elapsed > spec.serve.start_timeout_s:
            raise ClusterError(
                f"the version did not start within serve.start_timeout_s={spec.serve.start_timeout_s:g} s of the endpoint, which "
                "goes on as it was; see `ray status` for missing resources"
            )
        time.sleep(POLL_S)


@dataclasses.dataclass
class Change:
    """The table that a block comes to."""

    table: Table


@contextlib.contextmanager
def all_or_nothing(application: str, table: Table) -> Iterator[Change]:
    """Come from `table` to the one that the block leaves in the yielded `Change`, and return once the ingress goes by it.

    Where anything fails, the endpoint has its earlier table, and a version that the block has started is taken away again.
    """
    from ray import serve as ray_serve

    known = set(ray_serve.status().applications)
    change = Change(table)
    try:
        yield change
        switch(application, change.table)
    except BaseException:
        if change.table is not table:
            table_store.write(application, dataclasses.replace(table, serial=change.table.serial + 1))
        for name in set(ray_serve.status().applications) - known:
            if name.startswith(f"{application}@"):
                ray_serve.delete(name, _blocking=False)
        raise


def switch(application: str, table: Table) -> Seen:
    """Write a table and return once the ingress goes by it. Raises `ClusterError` where it does not."""
    table_store.write(application, table)
    return _await(application, lambda seen: seen.id == table.id and seen.serial >= table.serial, TAKEN_UP_S)


def take_down(application: str, table: Table, row: Row) -> Table:
    """Let no new request come to a version, wait for those that it has, and stop it. Returns the table without it."""
    assert row.goes
    assert table.spec is not None
    drain_s = table.spec.serve.drain_s
    table = table.changed(row.target, state=LEAVING, share=0.0)
    switch(application, table)
    with contextlib.suppress(ClusterError):  # what still runs after serve.drain_s is cut, as at the end of an endpoint
        _await(application, lambda seen: not seen.busy.get(row.target), drain_s)
    table = table.without(row.target)
    switch(application, table)
    if row.application:
        drain(row.application, drain_s)
    return table


def _await(application: str, holds: Callable[[Seen], bool], seconds: float) -> Seen:
    deadline = time.monotonic() + seconds
    while True:
        seen = table_store.read_seen(application)
        if holds(seen):
            return seen
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the endpoint has not taken up the change within {seconds:g} s; look at its /health, and run the same command again"
            )
        time.sleep(POLL_S)


def running_on(found: Mapping[str, Any] | None = None) -> dict[str, Table]:
    """The endpoints of several policies that run on the connected cluster, by their applications, with their tables as of now."""
    from ray import serve as ray_serve

    applications = ray_serve.status().applications if found is None else found
    tables = {name: table_store.current(name) for name in table_store.names() if name in applications}
    return {name: table for name, table in tables.items() if table is not None and table.changes}
