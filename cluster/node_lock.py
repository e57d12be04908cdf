"""One process of a node at a time."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import pathlib
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def alone(path: pathlib.Path) -> AsyncIterator[None]:
    """A block that is entered by one process of this node at a time; the lock of a process that dies is free."""
    with path.open("w") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield
