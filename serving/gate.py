"""What every request passes, with one policy and with several: one ASGI application in front of vLLM's.

    request ── id ── key ── body, bounded ── version, checks of its JSON ── a place ── vLLM's app ── answer ── log and numbers
                └ 401  └ 413, 408           └ 400, 404                     └ 429, 503  └ 4xx in a sentence, 500 with an id, 503: down

`app` answers /v1/chat/completions and /v1/completions. Beside ASGI's messages it may send `USAGE` (serving/answer.py) with the tokens
of a reply, and it raises `Refusal` where the engine does not work.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pydantic_core
from starlette.datastructures import Headers
from starlette.responses import Response

from serving import openapi
from serving.access import Access, Key
from serving.adapters import SCOPE
from serving.admission import Bytes
from serving.answer import Answer
from serving.bodies import parsed, read_body
from serving.catalog import VERSION_HEADER, Catalog, asker_of
from serving.observed import SERVES_ID, Observed, Record, new_id
from serving.replies import (
    DIED,
    ID_HEADER,
    RESTARTING,
    ClientLeft,
    Refusal,
    error_reply,
    internal,
    json_reply,
)
from serving.request_rules import Asked, check
from serving.schema import BODIES, FORMS
from serving.versions import Row
from vidalign.config.serving import LimitsConfig

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# In the scope: how long a reply was asked for, by whom, and whether it is to have a form.
ASKED_TOKENS, CLIENT, IN_FORM = "vidalign.asked_tokens", "vidalign.client", "vidalign.in_form"
OPEN_READS = ("/health", "/ready", "/metrics", "/v1/models", "/openapi.json")
PASSED_ON = (b"accept", b"user-agent", b"traceparent", b"tracestate")  # of a client's headers
LEFT = "the client left"
DOWN_S = 10.0  # for which a client is asked to wait where an engine is down

log = logging.getLogger("vidalign.serving")


class Gate:
    """The application that clients reach. `catalog` says which versions are behind it."""

    def __init__(self, app: ASGIApp, catalog: Catalog, limits: LimitsConfig, access: Access, observed: Observed) -> None:
        self._app, self._catalog, self._limits, self._access, self._observed = app, catalog, limits, access, observed
        self._bodies = Bytes(int(limits.max_bodies_mb * 2**20))
        self._copies: set[asyncio.Task[None]] = set()

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
        if of_serve := SERVES_ID.fullmatch(given):
            record.id = given
        answer = Answer(send, record, names_itself=not of_serve)
        try:
            await self._answer(scope, receive, answer, record)
        except Refusal as refusal:
            record.why = refusal.logged
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
        works, healthy, ready = self._catalog.state()
        if path == "/health":
            return json_reply({"status": "ok" if healthy else "down", "models": works}, 200 if healthy else 503)
        if path == "/ready":
            return json_reply({"ready": ready}, 200 if ready else 503)
        if path == "/metrics":
            self._observed.show(self._catalog)
            return Response(self._observed.metrics(), media_type="text/plain; version=0.0.4")
        if path == "/openapi.json":
            return json_reply(openapi.document())
        if path == "/v1/models":
            return json_reply({"object": "list", "data": list(self._catalog.cards().values())})
        return json_reply(self._catalog.card(path.removeprefix("/v1/models/")))

    async def _generate(self, scope: Scope, receive: Receive, answer: Answer, record: Record, key: Key) -> None:
        body = await read_body(scope, receive, self._limits, self._bodies)
        try:
            found = await parsed(body)
            asker = asker_of(found, Headers(scope=scope), key.name)
            routes = self._catalog.routes(found.get("model") if isinstance(found, dict) else None, asker)
            asked = check(scope["path"], found, {name: row.served for name, row in routes.items()}, self._limits)
            row = routes[asked.model_id]
            record.model, record.label, record.policy_version = asked.model_id, row.label, row.version
            if not self._catalog.works(row):
                raise _down(row.label, RESTARTING)
            came_s = record.since()
            async with self._catalog.place(row, key.name, asked.num_sequences):
                record.wait_s = record.since() - came_s
                answer.headers |= asked.headers | {VERSION_HEADER: row.version}
                if asked.model_id == row.model_id and (shadow := self._catalog.shadow(row.model_id)):
                    self._copy(scope, body, shadow, key)
                await self._watched(scope, receive, answer, record, asked, row)
        finally:
            self._bodies.give_back(len(body))

    async def _watched(self, scope: Scope, receive: Receive, answer: Answer, record: Record, asked: Asked, row: Row) -> None:
        """The engine's answer; how it ended is noted for the version."""
        began_s, failed = record.since(), False
        try:
            await self._engine(scope, receive, answer, record, asked, row)
            if not answer.begun:  # the client left
                return
            failed = answer.broke
        except (ClientLeft, asyncio.CancelledError):
            raise
        except Exception as error:
            if isinstance(error, Refusal) and error.status < 500:  # the client's mistake
                raise
            failed = True
            self._catalog.noted(row, failed=failed, seconds=record.since() - began_s)
            raise
        self._catalog.noted(row, failed=failed, seconds=record.since() - began_s)

    def _copy(self, scope: Scope, body: bytes, row: Row, key: Key) -> None:
        """Ask a shadow too, if it has a place at once."""
        places = self._catalog.places(row)
        if self._catalog.works(row) and places.running < places.most and not places.waiting:
            copy = asyncio.create_task(self._answer_copy(scope, body, row, key))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)

    async def _answer_copy(self, scope: Scope, body: bytes, row: Row, key: Key) -> None:
        record = Record(method="POST", path="shadow", key=key.name, model=row.model_id)
        record.label, record.policy_version = row.label, row.version
        answer = Answer(_to_nobody, record)
        try:
            asked = check(scope["path"], await parsed(body), {row.model_id: row.served}, self._limits)
            async with self._catalog.place(row, key.name, asked.num_sequences):
                await self._watched(scope, _never, answer, record, asked, row)
        except Refusal as refusal:
            record.status, record.why = refusal.status, refusal.logged
        except Exception:
            log.exception("the copy %s for a shadow failed", record.id)
        finally:
            self._observed.finished(record)

    async def _engine(self, scope: Scope, receive: Receive, answer: Answer, record: Record, asked: Asked, row: Row) -> None:
        body = pydantic_core.to_json(asked.body | {"model": row.name_there})
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
            "target": row.target,
            CLIENT: record.key,
        }
        if row.adapter:
            inner[SCOPE] = (row.name_there, row.adapter)
        if asked.wanted_tokens is not None:
            inner[ASKED_TOKENS] = asked.wanted_tokens
        answer.inner, answer.in_form = True, any(asked.body.get(name) for name in FORMS)
        if answer.in_form:
            inner[IN_FORM] = True
        sent = False

        async def receive_body() -> Message:
            nonlocal sent
            if sent:
                return await receive()  # what comes now is that the client leaves
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self._app(inner, receive_body, answer)
        except Refusal as refusal:
            if refusal.code in (DIED, RESTARTING):
                raise _down(asked.model_id, refusal.code) from None
            raise
        if answer.held is not None:
            raise answer.held

    async def _refuse(self, scope: Scope, receive: Receive, answer: Answer, refusal: Refusal) -> None:
        if answer.begun:  # a stream: the status is out already
            await answer.end_in_error(refusal)
            return
        answer.inner = False
        await error_reply(refusal, answer.record.id)(scope, receive, answer)


async def _to_nobody(message: Message) -> None:
    """Where the answer of a shadow goes."""


async def _never() -> Message:
    """Nobody leaves who waits for nothing."""
    return await asyncio.get_running_loop().create_future()


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
