"""What the gate knows of the versions behind it: what a client may name, where its request goes, and the places of each."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from serving.admission import Admission
from serving.replies import Refusal
from serving.trial import Outcomes
from serving.versions import LEAVING, ON_TRIAL, PROMOTED, SHADOW, Asker, Row, answering, taken_back
from vidalign.config.serving import LimitsConfig

VERSION_HEADER, CANARY_HEADER = "x-policy-version", "x-canary"


class Catalog:
    """The versions of an endpoint as its table has them, which may change while requests are answered.

    `works` says of each target whether its engine does; `capacity` is how many replicas each may have.
    """

    def __init__(
        self, rows: Sequence[Row], limits: LimitsConfig, *, works: Callable[[], Mapping[str, bool]], capacity: int = 1
    ) -> None:
        self._limits, self._works, self._capacity = limits, works, capacity
        self._started_at = int(time.time())
        self._places: dict[str, Admission] = {}  # by engine
        self._busy: collections.Counter[str] = collections.Counter()
        self.outcomes = Outcomes()
        self.verdicts: dict[str, str] = {}
        self.rows: tuple[Row, ...] = ()
        self.apply(rows)

    def apply(self, rows: Sequence[Row]) -> None:
        """Take up another table. Requests that run go on with the places that they have."""
        trials = {row.trial for row in rows if row.state in ON_TRIAL}
        if trials - {row.trial for row in self.rows if row.state in ON_TRIAL}:
            self.outcomes.clear()
        self.rows = taken_back(rows, self.verdicts)
        limits, each = self._limits, self._capacity
        engines = {row.engine for row in rows}
        self._places = {
            engine: self._places.get(engine)
            or Admission(limits.max_sequences * each, limits.max_waiting * each, limits.max_wait_s)
            for engine in engines
        }

    def take_back(self, row: Row, why: str) -> None:
        """Let a version on trial answer nobody any more who does not name it."""
        self.verdicts[row.trial] = why
        self.rows = taken_back(self.rows, self.verdicts)

    def routes(self, asked: Any, asker: Asker) -> dict[str, Row]:
        """Every id that a request may name → the version that would answer it. Raises `Refusal` for a version that is not there."""
        routes = {}
        for model_id, rows in self._models().items():
            if asked in (None, model_id):
                routes[model_id] = answering(rows, asker, self._takes)
            else:
                routes[model_id] = next(row for row in rows if row.state == PROMOTED)
            if len(rows) > 1:
                routes |= {row.exact_id: row for row in rows}
        for row in self.rows:
            if asked == row.exact_id and row.state != LEAVING:
                if asker.version not in ("", row.version):
                    raise Refusal(
                        400, f"model {asked} and {VERSION_HEADER} {asker.version[:80]!r} name two versions; leave one out"
                    )
                routes[asked] = row
        return routes

    def _models(self) -> dict[str, list[Row]]:
        models: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.state != LEAVING:
                models.setdefault(row.model_id, []).append(row)
        return models

    def _takes(self, canary: Row) -> bool:
        """Whether a canary can answer whom its share gives it; that it cannot counts as a failed request."""
        works = self.works(canary)
        if not works:
            self.noted(canary, failed=True, seconds=0.0)
        return works

    def works(self, row: Row) -> bool:
        """Whether a version's engine does."""
        return self._works().get(row.target, False)

    def places(self, row: Row) -> Admission:
        """The places of a version's engine; of one that has just been taken away, none of anybody's."""
        if row.engine not in self._places:
            raise Refusal(404, f"there is no {row.exact_id} any more")
        return self._places[row.engine]

    @contextlib.asynccontextmanager
    async def place(self, row: Row, client: str, weight: int) -> AsyncIterator[None]:
        """Places for replies of a version while the block lasts. Raises `Refusal` as `Admission.place` does."""
        self._busy[row.target] += weight
        try:
            async with self.places(row).place(client, weight):
                yield
        finally:
            self._busy[row.target] -= weight

    def shadow(self, model_id: str) -> Row | None:
        """The version that gets copies of a model's requests."""
        return next((row for row in self.rows if row.model_id == model_id and row.state == SHADOW), None)

    def noted(self, row: Row, *, failed: bool, seconds: float) -> None:
        """One request of a version is over; a version on trial may be taken back for it."""
        self.outcomes.note(row.target, failed=failed, seconds=seconds)
        for each in self.rows:
            if each.state in ON_TRIAL and each.model_id == row.model_id:
                promoted = next(other for other in self._models()[row.model_id] if other.state == PROMOTED)
                if why := self.outcomes.verdict(each.target, promoted.target, each.bounds):
                    self.take_back(each, why)

    def state(self) -> tuple[dict[str, bool], bool, bool]:
        """Whether each version works, by its label; whether all that answer by default do; and whether they take requests now."""
        works = {row.label: self.works(row) for row in self.rows if row.state != LEAVING}
        promoted = [row for row in self.rows if row.state == PROMOTED]
        healthy = all(self.works(row) for row in promoted)
        return works, healthy, healthy and not any(self._places[row.engine].full for row in promoted)

    def busy(self) -> dict[str, int]:
        """How many replies of each target are being given or waited for."""
        return {row.target: self._busy[row.target] for row in self.rows}

    def cards(self) -> dict[str, dict[str, Any]]:
        """What /v1/models says of each id."""
        cards = {}
        for model_id, rows in self._models().items():
            promoted = next(row for row in rows if row.state == PROMOTED)
            cards[model_id] = promoted.served.card(model_id, self._started_at)
            if len(rows) > 1:
                cards |= {row.exact_id: self._exact_card(row) for row in rows}
        return cards

    def card(self, name: str) -> dict[str, Any]:
        """What is said of one id. Raises `Refusal`."""
        cards = self.cards()
        exact = {row.exact_id: row for row in self.rows if row.state != LEAVING}
        if name not in cards and name not in exact:
            raise Refusal(404, f"there is no model {name[:80]!r}; this endpoint has {', '.join(cards)}")
        return cards[name] if name in cards else self._exact_card(exact[name])

    def _exact_card(self, row: Row) -> dict[str, Any]:
        card = row.served.card(row.exact_id, self._started_at)
        card["metadata"] |= {"version_of": row.model_id, "state": row.state} | ({"share": row.share} if row.share else {})
        return card


def asker_of(body: Any, headers: Mapping[str, str], client: str) -> Asker:
    """Who asks, and which version it wants. Raises `Refusal` for an x-canary that says nothing."""
    user = body.get("user") if isinstance(body, dict) else None
    wish = headers.get(CANARY_HEADER)
    if wish is not None and wish.lower() not in ("true", "false"):
        raise Refusal(400, f"{CANARY_HEADER} must be true or false, got {wish[:40]!r}")
    return Asker(
        who=user if isinstance(user, str) and user else client,
        version=headers.get(VERSION_HEADER, ""),
        canary=None if wish is None else wish.lower() == "true",
    )
