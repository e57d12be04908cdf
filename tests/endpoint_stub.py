"""An endpoint without vLLM and Ray: the gate, in both modes, in front of a stub of vLLM's application."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from serving.answer import USAGE
from serving.gate import ASKED_TOKENS
from serving.gates import GateOptions
from serving.relay import Relay, answered
from serving.replies import DIED, RESTARTING, Refusal
from serving.request_rules import Served
from vidalign.config.run import ServeConfig
from vidalign.types import FrameSpec

SPEC = FrameSpec(num_frames=8, height=56, width=56)
MODES = ("one policy", "several")


class StubEngine:
    """Answers with what it was asked. A request's `user` says what becomes of it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.scopes: list[dict[str, Any]] = []
        self.running = self.most_running = self.cancelled = 0
        self.works, self.fails = True, False
        self.delay_s = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        if not self.works:
            raise Refusal(503, "the engine is down", code=RESTARTING)
        body = json.loads((await receive())["body"])
        self.asked.append(body)
        self.scopes.append(scope)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self._answer(body, scope, receive, send)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, body: dict[str, Any], scope: Any, receive: Any, send: Any) -> None:
        what = body.get("user")
        await asyncio.sleep(self.delay_s)
        if what == "hangs":
            await asyncio.sleep(600)
        if what == "bug" or self.fails:
            raise RuntimeError('Traceback (most recent call last): File "/srv/secret.py", line 3')
        if what == "dies":
            self.works = False
            raise Refusal(503, "the engine died", code=DIED)
        if what in ("400", "500"):
            text = 'this is wrong\n\n  File "/srv/secret.py", line 3, in f'
            await _reply(send, int(what), {"error": {"message": text, "type": "X", "param": None, "code": int(what)}})
            return
        if what == "gives up":
            text = "Internal server error"
            await _reply(send, 500, {"error": {"message": text, "type": "InternalServerError", "param": None, "code": 500}})
            return
        if body.get("stream"):
            await self._stream(body, send)
        else:
            choices = [{"index": i, "message": {"role": "assistant", "content": "Yes."}} for i in range(body.get("n", 1))]
            await _reply(send, 200, {"model": body["model"], "choices": choices, ASKED_TOKENS: scope.get(ASKED_TOKENS)})
        await send({"type": USAGE, "prompt_tokens": 7, "completion_tokens": 3})

    async def _stream(self, body: dict[str, Any], send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        if what := {
            "refused": (400, "[00:49:22] <path>:83: this regex is none"),
            "gave up": (500, "Internal server error"),
        }.get(body.get("user")):
            event = json.dumps({"error": {"message": what[1], "type": "X", "param": None, "code": what[0]}})
            for data in (event, "[DONE]"):
                await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": data == event})
            return
        for word in ("It", "moves"):
            await send(
                {"type": "http.response.body", "body": f"data: {json.dumps({'text': word})}\n\n".encode(), "more_body": True}
            )
            await asyncio.sleep(self.delay_s)
        if body.get("user") == "breaks":
            raise RuntimeError("/srv/secret.py")
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def _reply(send: Any, status: int, content: Any) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


class StubCall:
    """What a handle of Ray Serve gives for a streaming call."""

    def __init__(self, app: Any, scope: dict[str, Any], body: bytes) -> None:
        self._messages = answered(app, scope, body)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages

    def cancel(self) -> None:
        self._closing = asyncio.ensure_future(self._messages.aclose())


def models(mode: str, **fields: Any) -> dict[str, Served]:
    options = {"frame_spec": SPEC, "media": {"video": 1}, "max_model_len": 512, **fields}
    names = ("base",) if mode == MODES[0] else ("base", "aligned")
    return {name: Served(version=f"v-{name}", parent="p", **options) for name in names}


def application(
    mode: str, engine: StubEngine, serve: dict[str, Any] | None = None, own_hash: str = "", **served: Any
) -> Any:
    """The ASGI application of an endpoint."""
    options = GateOptions(models=models(mode, **served), serve=ServeConfig.model_validate(serve or {}), own_hash=own_hash)
    if mode == MODES[0]:
        return options.gate(engine, options.catalog(lambda: {"base": engine.works}))

    async def alive() -> bool:
        return engine.works

    relay = Relay(
        {name: lambda scope, body: StubCall(engine, scope, body) for name in options.models},
        dict.fromkeys(options.models, alive),
    )
    return options.gate(relay, options.catalog(lambda: relay.up))


@contextlib.asynccontextmanager
async def client(app: Any, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint", headers=headers) as made:
        yield made


def haproxy_config(port: int, replica_port: int, folder: str = "/tmp/x") -> str:
    """What Ray Serve's own template makes for one replica, and its own proxy where there is none."""
    import types

    import jinja2
    from ray.serve._private import haproxy, haproxy_templates
    from ray.serve.config import HTTPOptions

    files = {"socket_path": f"{folder}/admin.sock", "error_file_path": f"{folder}/500.http"}
    config = haproxy.HAProxyConfig(http_options=HTTPOptions(host="127.0.0.1", port=port), **files)
    server, proxy = (
        haproxy.ServerConfig(name=name, host="127.0.0.1", port=port) for name, port in (("s", replica_port), ("f", 31000))
    )
    backend = haproxy.BackendConfig(name="b", path_prefix="/", app_name="a", servers=[server], fallback_server=proxy)
    environment = jinja2.Environment()
    environment.filters["haproxy_fmt"] = str
    routes = types.SimpleNamespace(status=200, routes_content_type="application/json", routes_message="{}")
    return environment.from_string(haproxy_templates.HAPROXY_CONFIG_TEMPLATE).render(
        config=config,
        backends=[backend],
        backends_with_health_config=[{"backend": backend, "health_config": backend.build_health_check_config(config)}],
        route_info=routes,
        healthz_rules="",
        metrics_socket_path=f"{folder}/metrics.sock",
    )
