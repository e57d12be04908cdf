"""The gate of a process, from the options of an endpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from serving.access import Access
from serving.gate import VERSION_HEADER, Gate
from serving.observed import Observed
from serving.replies import ID_HEADER
from serving.request_rules import FRAMES_HEADER, MAX_TOKENS_HEADER, Served
from vidalign.config.run import ServeConfig

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateOptions:
    """What a gate is made from: it is sent to the process that clients reach.

    `own_hash` is the hash of the key with which the process that started the endpoint asks it. `capacity`: replicas of each model.
    """

    models: Mapping[str, Served]
    serve: ServeConfig
    own_hash: str = ""
    capacity: int = 1

    def gate(self, app: ASGIApp, works: Callable[[], Mapping[str, bool]]) -> ASGIApp:
        """The gate in front of an application. `works` says of each model whether its engine does."""
        observed = Observed({name: served.version for name, served in self.models.items()}, self.serve.access_log)
        access = Access(self.serve.access, self.own_hash)
        gate = Gate(app, self.models, self.serve.limits, access, observed, works=works, capacity=self.capacity)
        return _with_cors(gate, self.serve.access.cors_origins)


def _with_cors(gate: Gate, origins: tuple[str, ...]) -> ASGIApp:
    """The gate, which scripts of these web pages may ask; of none, unless some are listed."""
    if not origins:
        return gate
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        gate,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type"],
        expose_headers=[ID_HEADER, VERSION_HEADER, MAX_TOKENS_HEADER, FRAMES_HEADER, "retry-after"],
    )
