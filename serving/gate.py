"""What every request passes, with one policy and with several: one ASGI application in front of vLLM's.

    request ── id ── key ── body, bounded ── checks of its JSON ── a place ── vLLM's app ── answer ── log and numbers
                └ 401  └ 413, 408           └ 400, 404            └ 429, 503  └ 4xx in a sentence, 500 with an id, 503 where it is down

`app` answers /v1/chat/completions and /v1/completions. Beside ASGI's messages it may send `USAGE` (serving/answer.py) with the tokens
of a reply, and it raises `Refusal` where the engine does not work.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pydantic_core
from starlette.datastructures import Headers
from starlette.responses import Response

from serving import openapi
from serving.access import Access, Key
from serving.admission import Admission, Bytes
from serving.answer import Answer
from serving.observed import Observed, Record, new_id
from serving.replies import (
    DIED,
    ID_HEADER,
    RESTARTING,
    ClientLeft,
    Refusal,
    error_reply,
    internal,
    json_reply,
    refusal_of,
)
from serving.request_rules import Asked, Served, check
from serving.schema import BODIES
from vidalign.config.serving import LimitsConfig

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASKED_TOKENS, CLIENT = (
    "vidalign.asked_tokens",
    "vidalign.client",
)  # in the scope: how long a reply was asked for, and by whom
VERSION_HEADER = "x-policy-version"
OPEN_READS = ("/health", "/ready", "/metrics", "/v1/models", "/openapi.json")
PASSED_ON = (b"accept", b"user-agent", b"traceparent", b"tracestate")  # of a client's headers
LEFT = "the client left"
DOWN_S = 10.0  # for which a client is asked to wait where an engine is down
LARGE_JSON = 2**20  # bytes that are parsed beside the event loop

_SERVES_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # HAProxy takes a client's own away
log = logging.getLogger("vidalign.serving")


class Gate:
    """The application that clients reach.

    `works` says of each model whether its engine does; `capacity` is how many replicas each may have behind this process.
    """

    def __init__(
        self,
        app: ASGIApp,
        models: Mapping[str, Served],
        limits: LimitsConfig,
        access: Access,
        observed: Observed,
        *,
        works: Callable[[], Mapping[str, bool]],
        capacity: int = 1,
    ) -> None:
        self._app, self._models, self._limits, self._access, self._observed = app, models, limits, access, observed
        self._bodies = Bytes(int(limits.max_bodies_mb * 2**20))
        self._places = {
            name: Admission(limits.max_sequences * capacity, limits.max_waiting * capacity, limits.max_wait_s)
            for name in models
        }
        self._works = works
        started_at = int(time.time())
        self._cards = {name: served.card(name, started_at) for name, served in models.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        path = scope["path"]
        given = Headers(scope=scope).get(ID_HEADER, "")
        record = Record(method=scope["method"], path=path if path in BODIES or path in OPEN_READS else "other")
        if of_serve := _SERVES_ID.fullmatch(given):
            record.id = given
        answer = Answer(send, record, names_itself=not of_serve)
        try:
            await self._answer(scope, receive, answer, record)
        except Refusal as refusal:
            record.why = refusal.message
            await self._refuse(scope, receive, answer, refusal)
        except ClientLeft:
            record.status, record.why = 499, LEFT
        except asyncio.CancelledError:
            record.status, record.why = 499, LEFT
            raise
        except Exception:
            log.exception("request %s failed", record.id)
            await self._refuse(scope, receive, answer, internal())
        finally:
            self._observed.finished(record)

    async def _answer(self, scope: Scope, receive: Receive, answer: Answer, record: Record) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if path in BODIES:
            _allow(scope["method"], "POST")
            key = self._access.who(path, headers.get("authorization", ""), _address(scope, headers))
            record.key = key.name
            with self._access.counted(key):
                await self._generate(scope, receive, answer, record, key)
            return
        if path not in OPEN_READS and not path.startswith("/v1/models/"):
            raise Refusal(404, f"there is nothing at {path[:80]}; /openapi.json lists what there is")
        _allow(scope["method"], "GET")
        kind = "/v1/models" if path.startswith("/v1/models/") else path
        record.key = self._access.who(kind, headers.get("authorization", ""), _address(scope, headers)).name
        await self._read(path)(scope, receive, answer)

    def _read(self, path: str) -> Response:
        """The reply to a GET."""
        works = self._works()
        if path == "/health":
            healthy = all(works.values())
            return json_reply({"status": "ok" if healthy else "down", "models": dict(works)}, 200 if healthy else 503)
        if path == "/ready":
            ready = all(works.values()) and not any(places.full for places in self._places.values())
            return json_reply({"ready": ready}, 200 if ready else 503)
        if path == "/metrics":
            for name, places in self._places.items():
                self._observed.running.labels(name).set(places.running)
                self._observed.waiting.labels(name).set(places.waiting)
                self._observed.up.labels(name).set(works[name])
            return Response(self._observed.metrics(), media_type="text/plain; version=0.0.4")
        if path == "/openapi.json":
            return json_reply(openapi.document())
        if path == "/v1/models":
            return json_reply({"object": "list", "data": list(self._cards.values())})
        name = path.removeprefix("/v1/models/")
        if name not in self._cards:
            raise Refusal(404, f"there is no model {name[:80]!r}; this endpoint has {', '.join(self._cards)}")
        return json_reply(self._cards[name])

    async def _generate(self, scope: Scope, receive: Receive, answer: Answer, record: Record, key: Key) -> None:
        body = await self._body(scope, receive)
        try:
            asked = check(scope["path"], await _parsed(body), self._models, self._limits)
            served = self._models[asked.model_id]
            record.model, record.policy_version = asked.model_id, served.version
            if not self._works()[asked.model_id]:
                raise _down(asked.model_id, RESTARTING)
            came_s = record.since()
            async with self._places[asked.model_id].place(key.name, asked.num_sequences):
                record.wait_s = record.since() - came_s
                answer.headers |= asked.headers | {VERSION_HEADER: served.version}
                await self._engine(scope, receive, answer, record, asked)
        finally:
            self._bodies.give_back(len(body))

    async def _engine(self, scope: Scope, receive: Receive, answer: Answer, record: Record, asked: Asked) -> None:
        body = pydantic_core.to_json(asked.body)
        headers = [(name, value) for name, value in scope["headers"] if name in PASSED_ON]
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (ID_HEADER.encode(), f"{record.id}-{new_id()[:8]}".encode()),  # the engine's: no two requests may share one
        ]
        inner = {
            **scope,
            "headers": headers,
            "query_string": b"",
            "state": {},
            "model_id": asked.model_id,
            CLIENT: record.key,
        }
        if asked.wanted_tokens is not None:
            inner[ASKED_TOKENS] = asked.wanted_tokens
        sent = False

        async def receive_body() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # what comes now is that the client leaves
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        answer.inner = True
        try:
            await self._app(inner, receive_body, answer)
        except Refusal as refusal:
            if refusal.code in (DIED, RESTARTING):
                raise _down(asked.model_id, refusal.code) from None
            raise
        if answer.held is not None:
            status, said = answer.held
            if status >= 500:
                log.error("request %s failed in the engine: %s", record.id, said.decode(errors="replace")[:2000])
            raise refusal_of(status, said)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises `Refusal` for one that is too large, or that does not come."""
        headers, most = Headers(scope=scope), int(self._limits.max_body_mb * 2**20)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, f"the body must be application/json, got Content-Type {kind[:60]!r}", connection="close")
        too_large = Refusal(
            413,
            f"a body may have {most:,} bytes (serve.limits.max_body_mb); send the video as a file: or https: url",
            connection="close",
        )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            raise too_large
        chunks: list[bytes] = []
        held = 0
        try:
            while True:
                async with asyncio.timeout(self._limits.body_idle_s):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                chunk = message.get("body", b"")
                if held + len(chunk) > most:
                    raise too_large
                self._bodies.take(len(chunk))
                held += len(chunk)
                chunks.append(chunk)
                if not message.get("more_body"):
                    return b"".join(chunks)
        except TimeoutError:
            self._bodies.give_back(held)
            raise Refusal(
                408,
                f"nothing of the body came for {self._limits.body_idle_s:g} s (serve.limits.body_idle_s)",
                connection="close",
            ) from None
        except BaseException:
            self._bodies.give_back(held)
            raise

    async def _refuse(self, scope: Scope, receive: Receive, answer: Answer, refusal: Refusal) -> None:
        if answer.begun:  # a stream: the status is out already
            await answer.end_in_error(refusal)
            return
        answer.inner = False
        await error_reply(refusal, answer.record.id)(scope, receive, answer)


def _down(model_id: str, code: str) -> Refusal:
    what = "ended while it worked on this request" if code == DIED else "is being started again"
    return Refusal(503, f"the engine of {model_id} {what}; try again later", code=code, retry_after_s=DOWN_S)


def _allow(method: str, only: str) -> None:
    if method != only and not (only == "GET" and method == "HEAD"):
        raise Refusal(405, f"this path takes {only}, got {method[:20]}", allow=only)


def _address(scope: Scope, headers: Headers) -> str:
    """Where a request comes from: HAProxy adds the address of its client."""
    forwarded = headers.getlist("x-forwarded-for")
    if forwarded:
        return forwarded[-1].rpartition(",")[2].strip()
    return scope["client"][0] if scope.get("client") else "unknown"


async def _parsed(body: bytes) -> Any:
    """The JSON of a body. Raises `Refusal`."""
    parse = functools.partial(pydantic_core.from_json, body, allow_inf_nan=False)
    try:
        return parse() if len(body) < LARGE_JSON else await asyncio.to_thread(parse)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {str(error)[:100]}") from None
