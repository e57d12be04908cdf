"""The process that clients reach where several policies are served. It imports neither vLLM nor torch.

table in the cluster ── read twice a second ──► catalog of the gate, targets of the relay ──► what was made of it, beside the table
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from serving import promotion_log, table_store
from serving.relay import ACCEPT_S, Relay
from serving.table_store import Seen
from serving.versions import Row, Table

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from serving.catalog import Catalog
    from serving.gates import GateOptions

LOOK_S = 0.5  # between two looks at the table

log = logging.getLogger("vidalign.serving")


class PolicyIngress:
    """The gate, and behind it a relay to the deployments."""

    def __init__(self, servers: dict[str, Any], *, options: GateOptions) -> None:
        """`servers`: model id → the handle of its deployment."""
        self._options = options
        calls = {name: _Target(handle) for name, handle in servers.items()}
        alive = {name: target.alive for name, target in calls.items()}
        sleeping = options.sleeps
        accept_s = options.serve.autoscaling.cold_start_s if sleeping else ACCEPT_S
        alive = {} if sleeping else alive
        self._relay = Relay(calls, alive, accept_s=accept_s, num_replicas=options.capacity, starting=True)
        self._bound, self._watched = set(servers), not sleeping

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve."""
        from ray import serve

        self._name = name = serve.get_replica_context().app_name
        catalog = self._options.catalog(lambda: self._relay.up)
        follower = Follower(catalog, self._relay, _Kept(name), self._connect, bound=self._bound)
        await follower.begin(Table(id=self._options.id, rows=self._options.rows(), spec=self._options.spec))
        self._following = asyncio.create_task(follower.follow())
        self._relay.watch()
        return self._options.gate(self._relay, catalog)

    def _connect(self, row: Row) -> tuple[Any, Any]:
        from ray import serve

        target = _Target(serve.get_deployment_handle(row.deployment, row.application or self._name, _check_exists=False))
        return target, target.alive if self._watched else None


class _Target:
    """A deployment, as the relay asks it. Its handle's router runs in the loop of the first call."""

    def __init__(self, handle: Any) -> None:
        self._handle: Any = handle
        self._answer: Any = None

    def __call__(self, scope: dict[str, Any], body: bytes) -> Any:
        """A `Call`, over gRPC from process to process: Ray would make an object of every message, at several times the cost."""
        if self._answer is None:
            self._answer = self._handle.options(stream=True, _by_reference=False).answer
        return self._answer.remote(scope, body)

    async def alive(self) -> bool:
        """Whether its engine can take requests."""
        return await self._handle.alive.remote()


class _Kept:
    """The table of one endpoint, as the cluster keeps it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self) -> Table | None:
        return table_store.read(self._name)

    def read_seen(self) -> Seen:
        return table_store.read_seen(self._name)

    def write(self, table: Table) -> None:
        """The table of an endpoint that starts; versions of the one that was there before are taken down."""
        from ray import serve

        own = {row.application for row in table.rows}
        for application in serve.status().applications:
            if application.startswith(f"{self._name}@") and application not in own:
                serve.delete(application, _blocking=False)
        table_store.write(self._name, table)

    def write_seen(self, seen: Seen) -> None:
        table_store.write_seen(self._name, seen)


class Follower:
    """Takes up the table wherever it changes, and says what became of it.

    `connect` gives a row's `Call` and its `alive`; the relay knows the targets that are `bound` already.
    """

    def __init__(
        self,
        catalog: Catalog,
        relay: Relay,
        kept: Any,
        connect: Callable[[Row], tuple[Any, Any]],
        *,
        bound: Collection[str] = (),
        look_s: float = LOOK_S,
    ) -> None:
        self._catalog, self._relay, self._kept, self._connect, self._look_s = catalog, relay, kept, connect, look_s
        self._table: Table | None = None
        self._targets = set(bound)
        self._said = Seen()
        self._logged: set[str] = set()

    async def begin(self, first: Table) -> None:
        """Take up the table that is there; of another start of this endpoint, or none, `first`."""
        table = await asyncio.to_thread(self._kept.read)
        if table is None or table.id != first.id:
            table = first
            await asyncio.to_thread(self._kept.write, table)
        seen = await asyncio.to_thread(self._kept.read_seen)
        self._catalog.verdicts = dict(seen.verdicts) if seen.id == table.id else {}
        self._logged = set(self._catalog.verdicts)
        await self._take_up(table)
        await self._say()

    async def follow(self) -> None:
        """Look at the table now and then, for ever."""
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self.look()
            except Exception:  # of Ray's head node, which may be away for a while
                log.exception("the table of versions cannot be read")

    async def look(self) -> None:
        """Take up a table that has changed, and say so."""
        table = await asyncio.to_thread(self._kept.read)
        if table is not None and self._table is not None and table.serial != self._table.serial:
            await self._take_up(table)
        await self._say()

    async def _take_up(self, table: Table) -> None:
        wanted = {row.target: row for row in table.rows}
        for target in wanted.keys() - self._targets:
            call, alive = await asyncio.to_thread(self._connect, wanted[target])
            self._relay.add(target, call, alive)
        self._catalog.apply(table.rows)
        for target in self._targets - wanted.keys():
            self._relay.remove(target)
        self._targets, self._table = set(wanted), table

    async def _say(self) -> None:
        assert self._table is not None
        rows = self._catalog.rows
        seen = Seen(
            id=self._table.id,
            serial=self._table.serial,
            up={row.target: self._catalog.works(row) for row in rows},
            busy=self._catalog.busy(),
            outcomes={row.target: self._catalog.outcomes.summary(row.target) for row in rows},
            verdicts=dict(self._catalog.verdicts),
        )
        if seen != self._said:
            await asyncio.to_thread(self._kept.write_seen, seen)
            self._said = seen
        for row in rows:
            if row.trial in seen.verdicts and row.trial not in self._logged:
                self._logged.add(row.trial)
                log.error("%s is taken back: %s", row.exact_id, row.why)
                await asyncio.to_thread(_note, row, self._table.promoted(row.model_id).version)


def _note(row: Row, promoted: str) -> None:
    step = {"who": "the endpoint", "step": "rollback", "model": row.model_id, "version": row.version, "source": row.source}
    promotion_log.note(
        row.run, **step, **{"from": row.version, "to": promoted}, outcome=promotion_log.AUTOMATIC, why=row.why
    )
