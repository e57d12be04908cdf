"""How many requests run and wait at once, so that no client takes the place of the others.

Each client (a key, or an address) has a queue; whose turn it is goes round. Where no more may wait, the last request of the longest
queue is refused, so a client that sends a thousand requests displaces its own and not those of the others.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import AsyncIterator

from serving.replies import Refusal

FIRST_GUESS_S = 1.0  # of how long a reply takes, until one has been given
MEMORY = 0.9  # of that estimate, with each further reply


class Admission:
    """The places of one model: `most` sequences run, and as many as `most_waiting` wait for at most `most_wait_s`.

    `most_each` is how many of one client run, where others are not to find all places taken.
    """

    def __init__(self, most: int, most_waiting: int, most_wait_s: float, *, most_each: int | None = None) -> None:
        self.most, self.most_waiting, self.most_wait_s = most, most_waiting, most_wait_s
        self.most_each = most if most_each is None else most_each
        self._running: collections.Counter[str] = collections.Counter()
        self.running = self.waiting = 0
        self._queues: dict[str, collections.deque[tuple[int, asyncio.Future[None]]]] = {}
        self._reply_s = FIRST_GUESS_S

    @property
    def full(self) -> bool:
        """Whether one more request would be refused."""
        return self.running >= self.most and self.waiting >= self.most_waiting

    def retry_after_s(self) -> float:
        """About how long it takes until a place is free."""
        return min(60.0, self._reply_s * (1 + self.waiting / self.most))

    @contextlib.asynccontextmanager
    async def place(self, client: str, weight: int) -> AsyncIterator[None]:
        """Places for `weight` sequences while the block lasts. Raises `Refusal` (429: too many wait; 503: waited too long)."""
        await self._enter(client, weight)
        started_at = time.monotonic()
        try:
            yield
        finally:
            self._let_out(client, weight)
            self._reply_s = MEMORY * self._reply_s + (1 - MEMORY) * (time.monotonic() - started_at)
            self._admit()

    async def _enter(self, client: str, weight: int) -> None:
        if client not in self._queues and self._fits(client, weight) and self._next() is None:
            self._let_in(client, weight)
            return
        self._make_room(client, weight)
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, collections.deque()).append((weight, turn))
        self.waiting += weight
        self._admit()
        try:
            async with asyncio.timeout(self.most_wait_s):
                await turn
        except TimeoutError:
            self._leave(client, weight, turn)
            raise Refusal(
                503,
                f"no place became free within {self.most_wait_s:g} s; try again later",
                retry_after_s=self.retry_after_s(),
            ) from None
        except BaseException:
            self._leave(client, weight, turn)
            raise

    def _make_room(self, client: str, weight: int) -> None:
        """Refuse somebody where no more may wait: the newest of the longest queue, or the one who asks."""
        while self.waiting + weight > self.most_waiting:
            longest = max(self._queues, key=self._load, default=client)
            if self._load(longest) <= self._load(client) + weight:
                raise self._full()
            number, turn = self._queues[longest].pop()
            self._forget(longest, number)
            turn.set_exception(self._full())

    def _full(self) -> Refusal:
        return Refusal(
            429,
            f"{self.running} replies are being given and {self.waiting} wait, which is as many as this endpoint takes; "
            "try again later",
            retry_after_s=self.retry_after_s(),
        )

    def _load(self, client: str) -> int:
        return sum(weight for weight, _ in self._queues.get(client, ()))

    def _leave(self, client: str, weight: int, turn: asyncio.Future[None]) -> None:
        if turn.done() and not turn.cancelled() and turn.exception() is None:  # it was let in at the same moment
            self._let_out(client, weight)
            self._admit()
            return
        queue = self._queues.get(client, collections.deque())
        with contextlib.suppress(ValueError):
            queue.remove((weight, turn))
            self._forget(client, weight)
        self._admit()

    def _forget(self, client: str, weight: int) -> None:
        self.waiting -= weight
        if not self._queues[client]:
            del self._queues[client]

    def _fits(self, client: str, weight: int) -> bool:
        return self.running + weight <= self.most and self._running[client] + weight <= self.most_each

    def _next(self) -> str | None:
        """Whose turn it is: the first client in the row that may have another one running."""
        return next((c for c, queue in self._queues.items() if self._running[c] + queue[0][0] <= self.most_each), None)

    def _let_in(self, client: str, weight: int) -> None:
        self.running += weight
        self._running[client] += weight

    def _let_out(self, client: str, weight: int) -> None:
        self.running -= weight
        self._running[client] -= weight
        if not self._running[client]:
            del self._running[client]

    def _admit(self) -> None:
        """Let in who is next, client by client, as long as there are places for it."""
        while (client := self._next()) is not None:
            weight, turn = self._queues[client][0]
            if self.running + weight > self.most:
                return  # it gets the next places, and nobody who needs fewer overtakes it
            queue = self._queues.pop(client)
            queue.popleft()
            if queue:
                self._queues[client] = queue  # at the end of the row
            self.waiting -= weight
            self._let_in(client, weight)
            turn.set_result(None)


class Bytes:
    """How many bytes of bodies are held at once."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0

    def take(self, number: int) -> None:
        """Raises `Refusal` where all bodies together would be too large."""
        if self.held + number > self.most:
            raise Refusal(503, "the bodies of all requests together are too large now; try again later", retry_after_s=1.0)
        self.held += number

    def give_back(self, number: int) -> None:
        self.held -= number
