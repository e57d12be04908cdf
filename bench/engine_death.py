"""An engine that is killed while it answers: what its clients are told, and when it answers again (`bench.serve_load`)."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any

import psutil

from bench.serve import Server

NUM_ASKING, ASKED_TOKENS = 4, 400
LOOK_S, MOST_S = 0.25, 180.0
MARGIN_S = 10.0  # that it may take longer than its start


async def engine_death(server: Server, body_of: Callable[..., bytes], start_s: float) -> dict[str, Any]:
    """Kill the engine of the asked model with some replies running. `start_s`: what the whole endpoint took to start.

    Returns:
        `told`: what became of the running requests; `told_s`: until the last of them knew; `refused_s`: how long a request took that
        was refused meanwhile, at most; `unhealthy`: whether /health said so; `back_s`: from the kill to the first answer.
    """
    import aiohttp

    headers = {"Content-Type": "application/json", **server.headers}
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:

        async def ask(number: int, num_tokens: int) -> str:
            data = body_of(server, number, max_tokens=num_tokens)
            async with session.post(f"{server.url}/chat/completions", data=data) as response:
                await response.read()
                retry = " with Retry-After" if "Retry-After" in response.headers else ""
                return f"{response.status}{retry}"

        asked = [asyncio.ensure_future(ask(number, ASKED_TOKENS)) for number in range(NUM_ASKING)]
        await asyncio.sleep(0.5)
        _engine_of(server).kill()
        began = time.perf_counter()
        told = collections.Counter(await asyncio.gather(*asked))
        told_s = time.perf_counter() - began
        unhealthy, refused_s, refusals = False, 0.0, collections.Counter[str]()
        while time.perf_counter() - began < MOST_S:
            at = time.perf_counter()
            status = await ask(1, 1)
            if status == "200":
                break
            refusals[status] += 1
            refused_s = max(refused_s, time.perf_counter() - at)
            async with session.get(f"{server.url.removesuffix('/v1')}/health") as health:
                unhealthy |= health.status == 503
            await asyncio.sleep(LOOK_S)
        return {
            "told": dict(told),
            "told_s": told_s,
            "refusals": dict(refusals),
            "refused_s": refused_s,
            "unhealthy": unhealthy,
            "back_s": time.perf_counter() - began,
            "start_s": start_s,
        }


def _engine_of(server: Server) -> psutil.Process:
    """The process of the engine that answers for the asked model."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            above = process.parent()
            replica = " ".join(above.cmdline()) if above else ""
            if "EngineCore" in " ".join(process.cmdline()) and f"PolicyServer:{server.model}" in replica:
                return process
    raise SystemExit(f"no engine of {server.model} runs")


def lines(forms: dict[str, dict[str, Any]], missed: list[str]) -> list[str]:
    """Rows of the table, of those forms whose engine was killed; what misses a goal is added to `missed`."""
    made = []
    for form, one in forms.items():
        if (row := one.get("death")) is None:
            continue
        if row["back_s"] > row["start_s"] + MARGIN_S:
            missed.append(f"{form}: back after {row['back_s']:.1f} s")
        others = {*row["told"], *row["refusals"]} - {"503 with Retry-After"}
        missed += [f"{form}: {status}" for status in sorted(others)]
        if not row["unhealthy"]:
            missed.append(f"{form}: /health stayed green")
        told = ", ".join(f"{count} x {status}" for status, count in row["told"].items())
        made.append(
            f"| {form} | {told}, after {row['told_s']:.2f} s | {sum(row['refusals'].values())} refused, each within "
            f"{1000 * row['refused_s']:.0f} ms | {'503' if row['unhealthy'] else '200'} | {row['back_s']:.1f} s | "
            f"{row['start_s']:.1f} s |"
        )
    return made
