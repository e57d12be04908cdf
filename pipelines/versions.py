"""`vidalign promote`, `rollback` and `versions`: another version of a policy behind an endpoint that goes on answering.

RUN[:round] ── fits the endpoint? ── started beside what runs ── canary, shadow or promoted ── the one before is kept for a rollback
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import logging
import socket
import sys
from collections.abc import Iterator
from typing import Any

from cluster.resources import ClusterResources
from cluster.session import connect
from pipelines.candidates import Candidate, How, find_candidate
from pipelines.places import find_cluster, only_endpoint
from serving import promotion, promotion_log, table_store
from serving.adapters import adapter_of
from serving.promotion_log import DONE, REFUSED, now
from serving.versions import BASE, CANARY, KEPT, ON_TRIAL, POLICY, TAKEN_BACK, Row, Table
from vidalign.config.cluster import ClusterConfig
from vidalign.errors import ClusterError, ModelError, VidalignError


def promote(named: str, to: str, how: How, *, verbose: bool = False) -> None:
    """Bring a version in. Raises a `VidalignError` where it cannot, and then the endpoint goes on as it was."""
    candidate = find_candidate(named)
    try:
        with endpoint_at(to, verbose=verbose) as (name, table, resources):
            _promote(name, table, candidate, how, resources)
    except VidalignError as error:
        _note(candidate.run, how.step, candidate.policy.version, candidate.source, "", "", REFUSED, str(error))
        raise


def _promote(name: str, table: Table, candidate: Candidate, how: How, resources: ClusterResources) -> None:
    version, before = candidate.policy.version, table.promoted()
    check(table, candidate)
    adapter = adapter_for(table, candidate)
    if table.find(version) is None and not adapter:
        table = _make_room(name, table, resources)
    with promotion.all_or_nothing(name, table) as change:
        if (row := table.find(version)) is not None:
            _must_work(name, row)
            known = table
        else:
            row = _start(name, table, candidate, adapter)
            known = table.added(row)
        if how.state in ON_TRIAL:
            change.table = known.changed(
                row.target, state=how.state, share=how.share, bounds=how.bounds, since=now(), why="", source=candidate.source
            )
        else:
            change.table = known.promote(row.target, now())
    table = change.table
    after = table.promoted().version
    _note(candidate.run, how.step, version, candidate.source, before.version, after)
    if how.state in ON_TRIAL:
        what = f"answers {how.share:.0%} of the users of {POLICY}" if how.state == CANARY else "gets a copy of every request"
        _say(f"{version} ({candidate.source}) {what}; it is taken back by itself when it fails or is slow")
        _say(
            f"promote it:    vidalign promote {candidate.source} --to ENDPOINT\ntake it back:  vidalign rollback --to ENDPOINT"
        )
        return
    _say(f"{POLICY} is {version} ({candidate.source}); {before.version} is kept for `vidalign rollback`")
    for old in _idle(table):
        if old.goes and old != table.back():
            table = _take_down(name, table, old)


def check(table: Table, candidate: Candidate) -> None:
    """Raises `VidalignError` for what cannot come in."""
    assert table.spec is not None
    version, trial = candidate.policy.version, table.on_trial()
    if table.promoted().version == version:
        raise ModelError(f"{version} ({candidate.source}) is what {POLICY} is already; `vidalign versions` lists what runs")
    if trial is not None and trial.version != version:
        raise ClusterError(
            f"{trial.version} ({trial.source}) is on trial ({trial.state}); promote it, or take it back with `vidalign rollback`, "
            "before another version comes in"
        )
    if candidate.frame_spec != table.spec.frame_spec:
        raise ModelError(
            f"{candidate.source} was trained with frames as {candidate.frame_spec.to_row()}, and the endpoint samples them as "
            f"{table.spec.frame_spec.to_row()}; start an endpoint of its own with `vidalign serve`"
        )


def _make_room(name: str, table: Table, resources: ClusterResources) -> Table:
    assert table.spec is not None
    idle = [row for row in _idle(table) if row.application]
    for row in promotion.make_room(table.spec.plan, idle, grows=resources.grows):
        table = _take_down(name, table, row)
    return table


def adapter_for(table: Table, candidate: Candidate) -> str:
    """The adapter with which the base's engine is this version; "" where that gets an engine of its own, which is then said."""
    assert table.spec is not None
    if not table.spec.adapters:
        return ""
    try:
        return adapter_of(candidate.policy, table.spec.models[BASE])
    except ModelError as error:
        _say(f"note: it gets an engine of its own: {error}")
        return ""


def _start(name: str, table: Table, candidate: Candidate, adapter: str) -> Row:
    assert table.spec is not None
    version, answering = candidate.policy.version, table.promoted().version
    if adapter:
        _say(f"loading the adapter of {version} ({candidate.source}) …")
        row = promotion.attach(name, table.spec, candidate.policy, candidate.plain_prompt, adapter)
    else:
        _say(f"starting {version} ({candidate.source}) …")
        row = promotion.start(name, table.spec, candidate.policy, candidate.plain_prompt)
    _note(candidate.run, "start", version, candidate.source, answering, answering)
    return dataclasses.replace(row, state=KEPT, source=candidate.source, run=candidate.run)


def _must_work(name: str, row: Row) -> None:
    """Raises `ClusterError` where a version that runs already would answer nobody."""
    if not table_store.read_seen(name).up.get(row.target, True):
        raise ClusterError(
            f"the engine of {row.exact_id} does not work now; wait until `vidalign versions` says that it does"
        )


def _idle(table: Table) -> list[Row]:
    """The versions that answer nobody who does not name them, the ones that are missed least first."""
    idle = [row for row in table.of(POLICY) if row.state in (KEPT, TAKEN_BACK)]
    return sorted(idle, key=lambda row: (row.state == KEPT, row.since))


def _take_down(name: str, table: Table, row: Row) -> Table:
    table = promotion.take_down(name, table, row)
    answering = table.promoted().version
    _note(row.run, "remove", row.version, row.source, answering, answering)
    _say(f"{row.version} ({row.source or 'the first'}) is taken down")
    return table


def rollback(to: str, *, verbose: bool = False) -> None:
    """Take back what is on trial, or remove what the endpoint took back; where nothing is, let the version answer that did before.

    Raises:
        ClusterError: there is none of all these.
    """
    with endpoint_at(to, verbose=verbose) as (name, table, _):
        before, trial, back = table.promoted(), table.on_trial(), table.back()
        if trial is not None:
            with promotion.all_or_nothing(name, table) as change:
                change.table = table = table.changed(trial.target, state=TAKEN_BACK, share=0.0, why="by hand")
            _note(trial.run, "rollback", trial.version, trial.source, before.version, before.version)
            _say(f"{trial.version} ({trial.source}) is taken back; {POLICY} is {before.version}")
            if trial.goes:
                _take_down(name, table, trial)
            return
        if failed := [row for row in _idle(table) if row.why and row.goes]:
            for row in failed:
                _say(f"{row.version} ({row.source}) was taken back already: {row.why}")
                table = _take_down(name, table, row)
            return
        if back is None:
            raise ClusterError(
                f"{POLICY} is {before.version}, and no version before it is kept; name one: vidalign promote RUN:ROUND --to {to}"
            )
        _must_work(name, back)
        with promotion.all_or_nothing(name, table) as change:
            change.table = table.promote(back.target, now(), before=TAKEN_BACK)
        _note(before.run or back.run, "rollback", back.version, back.source, before.version, back.version)
        _say(f"{POLICY} is {back.version} again; {before.version} answers only as {before.exact_id}")


def versions(to: str, *, verbose: bool = False) -> str:
    """A table of what runs."""
    with endpoint_at(to, verbose=verbose, changes=False) as (name, table, _):
        seen = table_store.read_seen(name)
    lines = [f"{'id':<24} {'state':<12} {'share':>5} {'works':<5} {'requests':>8} {'errors':>6} {'p90':>8}  from"]
    for row in table.rows:
        found = seen.outcomes.get(row.target, {})
        seconds = found.get("p90_s")
        lines.append(
            f"{row.exact_id:<24} {row.state:<12} {f'{row.share:.0%}' if row.share else '':>5} "
            f"{'yes' if seen.up.get(row.target) else 'no':<5} {found.get('requests', 0):>8} {found.get('errors', 0):>6} "
            f"{'' if seconds is None else f'{seconds:.3g} s':>8}  {row.source or 'the start'}{f'  ({row.why})' if row.why else ''}"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def endpoint_at(to: str, *, verbose: bool, changes: bool = True) -> Iterator[tuple[str, Table, ClusterResources]]:
    """The endpoint at an address: its application, its table, and what its cluster has. Nobody else changes it meanwhile."""
    with connect(ClusterConfig(address=find_cluster(to)), verbose=verbose) as resources, _without_traces(to):
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        name = only_endpoint(to)
        with table_store.locked(name) if changes else contextlib.nullcontext():
            table = table_store.current(name)
            assert table is not None, name
            if changes:
                promotion.clear_orphans(name, table)
            yield name, table, resources


@contextlib.contextmanager
def _without_traces(to: str) -> Iterator[None]:
    """Raise `ClusterError` where Ray or its Serve goes away meanwhile."""
    import ray.exceptions
    import ray.serve.exceptions

    try:
        yield
    except (ray.exceptions.RayError, ray.serve.exceptions.RayServeException) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"the endpoint at {to} does not answer any more ({reason}); see whether it runs with `ray status`"
        ) from error


def _note(
    run: str, step: str, version: str, source: str, before: str, after: str, outcome: str = DONE, why: str = ""
) -> None:
    told: dict[str, Any] = {"who": f"{getpass.getuser()}@{socket.gethostname()}", "step": step, "model": POLICY}
    told |= {"version": version, "source": source, "from": before, "to": after, "outcome": outcome, "why": why}
    try:
        promotion_log.note(run, **told)
    except OSError as error:  # what was done is done
        _say(f"note: {run}/{promotion_log.FILE} cannot be written: {error.strerror}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
