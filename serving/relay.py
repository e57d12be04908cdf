"""Several policies behind one port: the gate in a process of its own, and each request relayed to the replica of its model.

    gate ── Relay ══ one streaming gRPC call a request: ASGI messages in lists ══ PolicyServer.answer ── EngineApp

The messages are those that the gate gets from an engine in its own process, so the two modes cannot differ in what they answer. A
replica says `ACCEPTED` as soon as it has a request; one that does not is down, or starting, and the client is told so at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from serving.replies import DIED, RESTARTING, ClientLeft, Refusal, internal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ACCEPTED = "vidalign.accepted"
REFUSED = "vidalign.refused"
ACCEPT_S = 15.0  # for a replica to say that it has a request
WATCH_S, ALIVE_S, MAX_MISSES = 2.0, 5.0, 2  # between two looks at a model; for its answer; and how many may be missing
FIRST_LOOK_S = 0.2  # between two looks at a model that has not answered yet
SENT = ("type", "method", "path", "headers", "query_string", "http_version", "scheme", "root_path")

log = logging.getLogger("vidalign.serving")
Call = Callable[[dict[str, Any], bytes], Any]  # → an asynchronous iterator of lists of messages, with `cancel`


class Relay:
    """The ASGI application behind a gate whose models are in other processes. `servers`: target → `Call`.

    Targets that may have no replica are not in `alive`: to look at one would start it. `accept_s` is how long a replica may take to
    say that it has a request. Of several replicas (`num_replicas`) of a target one may be gone while the others answer. Where it is
    `starting`, the targets in `alive` do not work until they say so.
    """

    def __init__(
        self,
        servers: Mapping[str, Call],
        alive: Mapping[str, Callable[[], Awaitable[bool]]],
        *,
        accept_s: float = ACCEPT_S,
        num_replicas: int = 1,
        starting: bool = False,
    ) -> None:
        self._servers, self._alive, self._accept_s = dict(servers), dict(alive), accept_s
        self._num_replicas = num_replicas
        self.up = {target: not (starting and target in alive) for target in servers}
        self._watching: dict[str, asyncio.Task[None]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.watch()
            await _lifespan(receive, send)
            return
        self.watch()
        target = scope["target"]
        if target not in self._servers:  # it was taken away while the request waited for a place
            raise Refusal(503, "this version is not there any more", code=RESTARTING)
        body = (await receive())["body"]
        sent = {name: scope[name] for name in scope if name in SENT or name.startswith("vidalign.")}
        sent["asgi"] = {"version": "3.0"}
        answer = self._servers[target](sent, body)
        accepted = False
        leaving = asyncio.create_task(_left(receive))
        leaving.add_done_callback(lambda task: task.cancelled() or answer.cancel())
        try:
            async with asyncio.timeout(self._accept_s) as patience:
                async for messages in answer:
                    for message in messages:
                        if message["type"] == ACCEPTED:
                            accepted = True
                            patience.reschedule(None)
                        elif message["type"] == REFUSED:
                            raise Refusal(message["status"], message["message"], code=message["code"])
                        else:
                            if _is_last(message):
                                leaving.cancel()  # from here on servers say that the client left
                            await send(message)
        except Refusal as refusal:
            if refusal.code in (DIED, RESTARTING):
                self._not_up(target)
            raise
        except asyncio.CancelledError:
            if leaving.done():
                raise ClientLeft from None
            answer.cancel()
            raise
        except Exception as error:  # of many kinds: the actor is gone, cannot be reached, or did not answer in time
            if leaving.done():
                raise ClientLeft from error
            answer.cancel()
            log.error("%s did not answer: %s", target, error)
            self._not_up(target)
            raise Refusal(503, "the engine is down", code=DIED if accepted else RESTARTING) from error
        finally:
            leaving.cancel()

    def add(self, target: str, call: Call, alive: Callable[[], Awaitable[bool]] | None) -> None:
        """One more target, which works until it is found not to."""
        self._servers[target], self.up[target] = call, True
        if alive is not None:
            self._alive[target] = alive

    def remove(self, target: str) -> None:
        """Forget a target. Requests that it is answering go on."""
        for known in (self._servers, self._alive, self.up):
            known.pop(target, None)  # type: ignore[attr-defined]
        if watching := self._watching.pop(target, None):
            watching.cancel()

    def _not_up(self, target: str) -> None:
        """A replica is gone. Where there may be others, looking at the target decides whether it works."""
        if target in self.up and self._num_replicas == 1:
            self.up[target] = target not in self._alive

    def watch(self) -> None:
        """Look at every target now and then, from now or the first request on."""
        for target in self._alive:
            if target not in self._watching:
                self._watching[target] = asyncio.get_running_loop().create_task(self._watch(target))

    async def _watch(self, target: str) -> None:
        misses, has_worked = 0, self.up[target]
        while True:
            alive = False
            try:
                async with asyncio.timeout(ALIVE_S):
                    alive = await self._alive[target]()
                misses = 0 if alive else MAX_MISSES
            except Exception as error:  # of as many kinds as above
                misses += 1
                log.info("%s does not answer: %s", target, error)
            if alive or misses >= MAX_MISSES:
                self.up[target] = alive
            has_worked = has_worked or alive
            await asyncio.sleep(WATCH_S if has_worked else FIRST_LOOK_S)


async def _left(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body")


async def answered(app: ASGIApp, scope: dict[str, Any], body: bytes) -> AsyncIterator[list[Message]]:
    """What an application answers to a relayed request: its messages, as many at a time as there are by then.

    The application is cancelled where the caller leaves.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    first = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        nonlocal first
        if first:
            message, first = first, {}
            return message
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app({**scope, "state": {}}, receive, messages.put)
        except Refusal as refusal:
            await messages.put({"type": REFUSED, "status": refusal.status, "message": refusal.message, "code": refusal.code})
        except Exception:
            log.exception("a request failed")
            fault = internal()
            await messages.put({"type": REFUSED, "status": fault.status, "message": fault.message, "code": None})
        finally:
            await messages.put(None)

    task = asyncio.create_task(run())
    try:
        yield [{"type": ACCEPTED}]
        while True:
            ready = [await messages.get()]
            # An answer's last part and what follows go together: each step costs both processes as much as a short reply's checks.
            while not messages.empty() or (ready[-1] is not None and _is_last(ready[-1])):
                ready.append(await messages.get())
            if found := [message for message in ready if message is not None]:
                yield found
            if ready[-1] is None:
                return
    finally:
        left.set()
        task.cancel()
