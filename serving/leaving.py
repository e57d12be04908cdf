"""A request whose task is cancelled, told to an application as vLLM's wants to hear it: as a client that leaves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

END_S = 5.0  # for an application to end a request once its client has left

DISCONNECT: Message = {"type": "http.disconnect"}


async def ended_with_its_client(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call an application that ends a request when `receive` says that its client left, though its own task is cancelled.

    vLLM's handlers wait for two tasks, one that generates and one that listens. Where the waiting itself is cancelled, as Ray Serve
    does, the generation goes on to its end for nobody.
    """
    left = asyncio.Event()

    async def receive_or_left() -> Message:
        if left.is_set():
            return DISCONNECT
        coming, leaving = asyncio.ensure_future(receive()), asyncio.ensure_future(left.wait())
        try:
            await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else DISCONNECT
        finally:
            coming.cancel()
            leaving.cancel()

    task = asyncio.ensure_future(app(scope, receive_or_left, send))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        left.set()
        await asyncio.wait({task}, timeout=END_S)
        task.cancel()
        raise
