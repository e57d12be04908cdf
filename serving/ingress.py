"""The process that clients reach where several policies are served. It imports neither vLLM nor torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.relay import Relay

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from serving.gates import GateOptions


class PolicyIngress:
    """The gate, and behind it a relay to the deployments."""

    def __init__(self, servers: dict[str, Any], *, options: GateOptions) -> None:
        """`servers`: model id → the handle of its deployment."""
        self._options = options
        calls = {name: handle.options(stream=True).answer.remote for name, handle in servers.items()}
        alive = {name: handle.alive.remote for name, handle in servers.items()}
        sleeping = options.serve.min_replicas == 0
        self._relay = Relay(calls, {}, accept_s=options.serve.start_timeout_s) if sleeping else Relay(calls, alive)

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray Serve."""
        return self._options.gate(self._relay, lambda: self._relay.up)
