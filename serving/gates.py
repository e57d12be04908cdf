"""The gate of a process, from the options of an endpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from serving.access import Access
from serving.catalog import Catalog
from serving.cors import Cors
from serving.gate import Gate
from serving.observed import Observed
from serving.request_rules import Served
from serving.spec import EndpointSpec
from serving.versions import Row, rows_of
from vidalign.config.run import ServeConfig

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What a gate is made from: it is sent to the process that clients reach.

    `own_hash` is the hash of the key with which the process that started the endpoint asks it. `capacity`: replicas of each model.
    Of an endpoint of several policies: `id` is of this start of it, `spec` what a further version is started with, and `apart` the
    applications (model id → name) of models that are not in its own.
    """

    models: Mapping[str, Served]
    serve: ServeConfig
    own_hash: str = ""
    capacity: int = 1
    id: str = ""
    spec: EndpointSpec | None = None
    apart: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def sleeps(self) -> bool:
        """Whether a model that nobody asks for has no replica."""
        return self.spec is not None and self.spec.plan.min_replicas == 0

    def rows(self) -> tuple[Row, ...]:
        """The table of the endpoint at its start."""
        return rows_of(self.models, self.apart, self.spec.adapters if self.spec is not None else None)

    def catalog(self, works: Callable[[], Mapping[str, bool]]) -> Catalog:
        """What is behind the gate at its start. `works` says of each target whether its engine does."""
        return Catalog(self.rows(), self.serve.limits, works=works, capacity=self.capacity)

    def gate(self, app: ASGIApp, catalog: Catalog) -> ASGIApp:
        """The gate in front of an application."""
        access = Access(self.serve.access, self.own_hash)
        gate = Gate(app, catalog, self.serve.limits, access, Observed(self.serve.access_log))
        return _with_cors(gate, self.serve.access.cors_origins)


def _with_cors(gate: Gate, origins: tuple[str, ...]) -> ASGIApp:
    """The gate, which scripts of these web pages may ask; of none, unless some are listed."""
    return Cors(gate, origins) if origins else gate
