"""Which versions of its policies an endpoint has, and which of them answers a request. Pure: the table itself is kept elsewhere.

    aligned            promoted 90 %, a canary 10 %: always the same one for the same user
    aligned@VERSION    exactly that one
    shadow             gets a copy of every request of `aligned`, and its answers go to nobody

A version that was promoted before is kept, so that going back needs no start.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from serving.replies import Refusal
from serving.request_rules import Served
from serving.spec import EndpointSpec

PROMOTED, CANARY, SHADOW, KEPT, TAKEN_BACK, LEAVING = "promoted", "canary", "shadow", "kept", "taken back", "leaving"
ON_TRIAL = (CANARY, SHADOW)
BASE, POLICY = "base", "aligned"  # the model over whose engine adapters are served, and the one whose versions are promoted
PREFIX = "PolicyServer:"  # what the names of deployments begin with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a version on trial may do before it is taken back, over its latest requests, once there are `min_requests`.

    `max_errors` is a share of them; `max_slowdown` a multiple of the promoted version's 90th percentile of seconds.
    """

    max_errors: float = 0.05
    max_slowdown: float = 2.0
    min_requests: int = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One running version of a model.

    `target` is what the relay knows it by, `application` the one in Ray Serve that holds it alone ("": the endpoint's own, which
    cannot give it up) and `deployment` its name there, `adapter` the folder of its adapter where that is the base's, `share` a
    canary's, `source` where it comes from (RUN:round), `run` the folder of that run, and `why` what it was taken back for.
    """

    target: str
    model_id: str
    served: Served
    state: str = PROMOTED
    share: float = 0.0
    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    application: str = ""
    deployment: str = ""
    adapter: str = ""
    source: str = ""
    run: str = ""
    since: str = ""
    why: str = ""

    @property
    def version(self) -> str:
        return self.served.version

    @property
    def exact_id(self) -> str:
        """The id under which a client asks this version and no other."""
        return f"{self.model_id}@{self.version}"

    @property
    def engine(self) -> str:
        """The target whose engine it is that answers."""
        return BASE if self.adapter else self.target

    @property
    def name_there(self) -> str:
        """What that engine calls it."""
        return self.exact_id if self.adapter else self.model_id

    @property
    def goes(self) -> bool:
        """Whether it can be taken away while the endpoint runs."""
        return bool(self.application or self.adapter)

    @property
    def trial(self) -> str:
        """What tells its present trial from an earlier one."""
        return f"{self.target} {self.since}"

    @property
    def label(self) -> str:
        """What metrics and /health call it."""
        return self.model_id if self.state == PROMOTED else self.exact_id


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The versions of an endpoint. `id` is of one start of it, `serial` counts the changes since."""

    id: str
    rows: tuple[Row, ...]
    spec: EndpointSpec | None = None
    serial: int = 1

    @property
    def changes(self) -> bool:
        """Whether versions can be promoted: an endpoint of a single model has none."""
        return len({row.model_id for row in self.rows}) > 1 and bool(self.of(POLICY))

    def of(self, model_id: str) -> list[Row]:
        """A model's versions."""
        return [row for row in self.rows if row.model_id == model_id]

    def find(self, version: str, model_id: str = POLICY) -> Row | None:
        """The row of a version that is not on its way out."""
        return next((row for row in self.of(model_id) if row.version == version and row.state != LEAVING), None)

    def promoted(self, model_id: str = POLICY) -> Row:
        """The version that answers by default."""
        return next(row for row in self.of(model_id) if row.state == PROMOTED)

    def on_trial(self, model_id: str = POLICY) -> Row | None:
        """The canary or shadow, if there is one."""
        return next((row for row in self.of(model_id) if row.state in ON_TRIAL), None)

    def back(self, model_id: str = POLICY) -> Row | None:
        """The version that a rollback would bring back."""
        kept = [row for row in self.of(model_id) if row.state == KEPT]
        return max(kept, key=lambda row: row.since, default=None)

    def added(self, row: Row) -> Table:
        """With one more version."""
        return self._with((*self.rows, row))

    def without(self, target: str) -> Table:
        """Without a version."""
        return self._with(row for row in self.rows if row.target != target)

    def changed(self, target: str, **fields: object) -> Table:
        """With other fields of one row."""
        return self._with(dataclasses.replace(row, **fields) if row.target == target else row for row in self.rows)  # type: ignore[arg-type]

    def promote(self, target: str, since: str, *, before: str = KEPT) -> Table:
        """With another version that answers by default; the one before it is in the state `before`."""
        model_id = next(row.model_id for row in self.rows if row.target == target)

        def after(row: Row) -> Row:
            if row.target == target:
                return dataclasses.replace(row, state=PROMOTED, share=0.0, since=since, why="")
            if row.model_id == model_id and row.state == PROMOTED:
                return dataclasses.replace(row, state=before, since=since)
            return row

        return self._with(map(after, self.rows))

    def _with(self, rows: Iterable[Row]) -> Table:
        return dataclasses.replace(self, rows=tuple(rows), serial=self.serial + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asker:
    """What decides which version answers: who asks (the request's `user`, else its key or address) and what its headers want.

    `version` is that of x-policy-version, `canary` that of x-canary.
    """

    who: str = ""
    version: str = ""
    canary: bool | None = None


def answering(rows: Sequence[Row], asker: Asker, works: Callable[[Row], bool] = lambda row: True) -> Row:
    """Which version of a model answers.

    A canary that does not work gets nobody who did not ask for it.

    Raises:
        Refusal: 404, the request wants a version that the model does not have.
    """
    if asker.version:
        for row in rows:
            if row.version == asker.version and row.state != LEAVING:
                return row
        known = ", ".join(row.version for row in rows if row.state != LEAVING)
        raise Refusal(404, f"{rows[0].model_id} has no version {asker.version[:80]!r} (x-policy-version); it has {known}")
    promoted = next(row for row in rows if row.state == PROMOTED)
    canary = next((row for row in rows if row.state == CANARY), None)
    if canary is None or asker.canary is False:
        return promoted
    if asker.canary:
        return canary
    return canary if place_of(asker.who, canary.version) < canary.share and works(canary) else promoted


def taken_back(rows: Sequence[Row], verdicts: Mapping[str, str]) -> tuple[Row, ...]:
    """The rows, in which those whose trial has a verdict (`Row.trial` → why) are taken back."""
    return tuple(
        dataclasses.replace(row, state=TAKEN_BACK, share=0.0, why=verdicts[row.trial])
        if row.trial in verdicts and row.state in ON_TRIAL
        else row
        for row in rows
    )


def rows_of(
    models: Mapping[str, Served], apart: Mapping[str, str] | None = None, adapters: Mapping[str, str] | None = None
) -> tuple[Row, ...]:
    """The table of an endpoint at its start: each model has one version, which is promoted.

    `apart`: model id → the application that holds it alone; `adapters`: model id → the adapter with which the base's engine is it.
    """
    apart, adapters = apart or {}, adapters or {}
    return tuple(
        Row(
            target=name,
            model_id=name,
            served=served,
            application=apart.get(name, ""),
            deployment=deployment_of(BASE if name in adapters else name),
            adapter=adapters.get(name, ""),
        )
        for name, served in models.items()
    )


def deployment_of(model_id: str) -> str:
    """The name of a model's deployment in its application."""
    return f"{PREFIX}{model_id}"


def place_of(who: str, version: str) -> float:
    """Where in [0, 1) an asker stands for a canary: always at the same place, and elsewhere for another canary."""
    digest = hashlib.sha256(f"{version}\0{who}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
