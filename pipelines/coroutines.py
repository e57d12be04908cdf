"""Coroutines from code that is none, also where an event loop runs already, as in a notebook."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, in a thread of its own where this one has a running event loop. What interrupts the wait cancels the work."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: concurrent.futures.Future[T] = concurrent.futures.Future()
    began: concurrent.futures.Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = concurrent.futures.Future()

    async def watched() -> T:
        task = asyncio.current_task()
        assert task is not None
        began.set_result((asyncio.get_running_loop(), task))
        return await work

    def in_thread() -> None:
        try:
            found.set_result(asyncio.run(watched()))
        except BaseException as error:
            found.set_exception(error)

    thread = threading.Thread(target=in_thread, name="coroutine", daemon=True)
    thread.start()
    try:
        return found.result()
    except BaseException:
        if thread.is_alive():
            loop, task = began.result()
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        thread.join()
