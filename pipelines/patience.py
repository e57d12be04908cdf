"""How often an endpoint is asked again, and which question ends its engine.

it is busy or starts again (429, 503 with Retry-After),        waited for, up to PATIENCE_S
or it has answered before and cannot be reached
the engine died while it worked on this and other questions    each of them is asked again, alone; the second time it is the cause
anything else that may pass                                    MAX_ATTEMPTS
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import openai

from serving.replies import DIED

MAX_ATTEMPTS = 5
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 5.0
MAX_RETRY_AFTER_S = 15.0
PATIENCE_S = 900.0  # an engine of a large model takes minutes to start
TRANSIENT = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, openai.ConflictError)

T = TypeVar("T")


class GivenUpError(Exception):
    """The endpoint was asked `attempts` times; `error` is what it said at last."""

    def __init__(self, error: openai.APIError, attempts: int) -> None:
        super().__init__(str(error))
        self.error, self.attempts = error, attempts


class EndsEngineError(Exception):
    """The engine died twice while it worked on a request, the second time on nothing else."""


class _DiedError(Exception):
    """The engine died while it worked on this request."""


class Patience:
    """The requests of one evaluation, of which `concurrency` are sent at a time. `was_ready`: the endpoint has answered before."""

    def __init__(self, concurrency: int, *, was_ready: bool = False) -> None:
        self._concurrency = concurrency
        self._slots, self._alone = asyncio.Semaphore(concurrency), asyncio.Lock()
        self._answered = was_ready

    async def ask(self, send: Callable[[], Awaitable[T]]) -> T:
        """What `send` returns, which sends the request once. Raises `GivenUpError`, `EndsEngineError`, and what does not pass."""
        async with self._slot():
            with contextlib.suppress(_DiedError):
                return await self._tried(send)
        async with self._alone, contextlib.AsyncExitStack() as all_slots:
            for _ in range(self._concurrency):
                await all_slots.enter_async_context(self._slot())
            try:
                return await self._tried(send)
            except _DiedError:
                raise EndsEngineError from None

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        async with self._slots:
            yield

    async def _tried(self, send: Callable[[], Awaitable[T]]) -> T:
        attempts, waited_from = 0, time.monotonic()
        while True:
            try:
                reply = await send()
            except TRANSIENT as error:
                if code_of(error) == DIED:
                    raise _DiedError from None
                attempts += 1
                waits = self._is_waited_for(error)
                if attempts >= MAX_ATTEMPTS if not waits else time.monotonic() - waited_from > PATIENCE_S:
                    raise GivenUpError(error, attempts) from error
                await asyncio.sleep(_pause_s(error, attempts))
            else:
                self._answered = True
                return reply

    def _is_waited_for(self, error: openai.APIError) -> bool:
        if isinstance(error, openai.APIStatusError):
            return error.status_code in (429, 503) and "retry-after" in error.response.headers
        return self._answered and not isinstance(error, openai.APITimeoutError)


def code_of(error: openai.APIError) -> str:
    """The code that the endpoint gave its error; "" if it gave none."""
    return str(error.body.get("code", "")) if isinstance(error.body, dict) else ""


def _pause_s(error: openai.APIError, attempts: int) -> float:
    after = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
    if after.isdigit():
        return min(float(after), MAX_RETRY_AFTER_S) * random.uniform(0.75, 1.25)
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (attempts - 1)) * random.uniform(0.75, 1.25)
