"""Clients that mean no good, one kind after the other, beside a few that ask as they should (`bench.serve_load`)."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from bench.serve import Server

NUM_OTHERS = 4
NUM_SLOW, SLOW_S = 600, 1.0  # connections that send a byte of their headers now and then
HUGE, BLOCK = 4 * 10**9, 2**20  # bytes
GREEDY = {"n": 4000, "ignore_eos": True, "max_tokens": 480, "temperature": 1.0}


async def abuse(
    server: Server,
    bad: Server,
    body_of: Callable[..., bytes],
    clients: Callable[[Server, int, float], Awaitable[Any]],
    memory_mib: Callable[[Server], float],
    seconds: float,
) -> list[dict[str, Any]]:
    """What becomes of each kind, who has the key of `bad`, and of the others meanwhile."""
    kinds: dict[str, Callable[[], Awaitable[str]]] = {
        f"{NUM_SLOW} connections whose headers come slowly": lambda: _slow(bad, seconds),
        "a body of 4 GB that says so": lambda: _huge(bad, says=True),
        "a body of 4 GB in chunks": lambda: _huge(bad, says=False),
        "n: 4000 with ignore_eos": lambda: _greedy(bad, body_of, seconds, GREEDY),
        "as many replies as a request may have, again and again": lambda: _greedy(
            bad, body_of, seconds, GREEDY | {"n": NUM_OTHERS * 2}
        ),
    }
    rows = []
    for what, run in kinds.items():
        others = asyncio.ensure_future(clients(server, NUM_OTHERS, seconds))
        became = await run()
        found = await others
        latencies = found.seconds or [seconds]
        rows.append(
            {
                "what": what,
                "became": became,
                "p50_s": latencies[len(latencies) // 2],
                "p99_s": latencies[int(0.99 * len(latencies))],
                "answered": len(found.seconds),
                "refused": found.refused,
                "failed": found.failed,
                "memory_mib": memory_mib(server),
            }
        )
        print(rows[-1], flush=True)
    return rows


@contextlib.asynccontextmanager
async def _connection(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urllib.parse.urlsplit(server.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _slow(server: Server, seconds: float) -> str:
    """How the connections end."""
    ended: collections.Counter[str] = collections.Counter()

    async def one() -> None:
        async with _connection(server) as (reader, writer):
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            answer = asyncio.ensure_future(reader.readline())
            with contextlib.suppress(OSError):
                async with asyncio.timeout(seconds):
                    while not answer.done():
                        writer.write(b"x")
                        await asyncio.wait([answer], timeout=SLOW_S)
            line = answer.result() if answer.done() and not answer.cancelled() else b""
            answer.cancel()
            ended[line.decode().strip()[9:] or "closed, or still open at the end"] += 1

    await asyncio.gather(*(_without_reset(one, ended) for _ in range(NUM_SLOW)))
    return _counts(ended)


async def _without_reset(one: Callable[[], Awaitable[None]], ended: collections.Counter[str]) -> None:
    try:
        await one()
    except (OSError, TimeoutError):
        ended["closed, or still open at the end"] += 1


async def _huge(server: Server, *, says: bool) -> str:
    """The status that comes, and how much was sent by then."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {server.key}\r\n".encode()
    head += f"Content-Length: {HUGE}\r\n\r\n".encode() if says else b"Transfer-Encoding: chunked\r\n\r\n"
    block = b" " * BLOCK if says else f"{BLOCK:x}\r\n".encode() + b" " * BLOCK + b"\r\n"
    async with _connection(server) as (reader, writer):
        writer.write(head)
        answer, sent = asyncio.ensure_future(reader.readline()), 0
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(60):
                while not answer.done() and sent < HUGE:
                    writer.write(block)
                    sent += BLOCK
                    await writer.drain()
                    await asyncio.sleep(0)
        with contextlib.suppress(OSError, TimeoutError):
            await asyncio.wait_for(asyncio.shield(answer), 10)
        line = answer.result() if answer.done() and answer.exception() is None else b""
        answer.cancel()
    return f"{line.decode().strip()[9:] or 'closed'} after {sent / 2**20:,.0f} MiB"


async def _greedy(server: Server, body_of: Callable[..., bytes], seconds: float, fields: dict[str, Any]) -> str:
    """The statuses that such requests get, one after the other."""
    import aiohttp

    ended: collections.Counter[str] = collections.Counter()
    headers = {"Content-Type": "application/json", **server.headers}
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    async with aiohttp.ClientSession(headers=headers) as session:
        while loop.time() < end:
            async with session.post(f"{server.url}/chat/completions", data=body_of(server, 0, **fields)) as response:
                await response.read()
            ended[str(response.status)] += 1
            await asyncio.sleep(0.2)
    return _counts(ended)


def _counts(ended: collections.Counter[str]) -> str:
    return ", ".join(f"{number} x {what}" for what, number in ended.most_common())
