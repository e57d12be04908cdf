"""`vidalign serve` against `vllm serve`: throughput at 1, 8 and 32 concurrent chat requests, with and without a video.

    vidalign bench serve [--rounds 5] [--quick]

`vidalign serve` with one policy and with several, both with bearer keys, and vLLM's own server are up at once, with the same model,
engine arguments, frame sampling and replica count, and are asked in turns, so that only one works at a time. Videos are sent as
data: urls and decoded by the server. Every reply has the same number of tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench import serve_decode
from bench.built_in import MAX_NEW_TOKENS, MODEL, SPEC
from bench.pages import PERFORMANCE, add_arguments, publish
from bench.serve_page import page
from bench.turns import results_in_turns
from cluster.engines import replica_environment, replica_options
from cluster.resources import ServePlan
from pipelines.summary import versions
from serving import video_loader
from serving.access import add_key
from serving.proxy import free_port
from vidalign import files
from vidalign.config.run import ServeConfig
from vidalign.model.checkpoint import CARD

SERVERS = ("ours", "several", "vllm")
NAME = "model"  # what `vidalign serve` calls a folder of that name
CONCURRENCY = (1, 8, 32)
NUM_REQUESTS = {1: 40, 8: 160, 32: 320}
START_TIMEOUT_S = 240
NICENESS = 0  # of Ray's workers, as of vLLM's server; by itself Ray takes 15, and other work on the machine would go first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    name: str
    url: str
    process: subprocess.Popen
    model: str = NAME
    key: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def open(self, timeout_s: float) -> Any:
        """The reply to a request that reaches no engine."""
        return urllib.request.urlopen(urllib.request.Request(f"{self.url}/models", headers=self.headers), timeout=timeout_s)

    def ready(self) -> bool:
        assert self.process.poll() is None, f"{self.name} ended with code {self.process.returncode}"
        try:
            with self.open(5) as response:
                listed = self.model in {card["id"] for card in json.load(response)["data"]}
            # vLLM's own server has no /ready: it lists its models once its engine works.
            with urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/{'ready' if self.key else 'health'}", timeout=5):
                return listed
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Keyword arguments of an engine as vLLM's command takes them; False and the empty string are its defaults."""
    flags = []
    for key, value in options.items():
        flag = "--" + key.replace("_", "-")
        if value is True:
            flags.append(flag)
        elif value not in (False, ""):
            flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags


@contextlib.contextmanager
def servers(
    log: pathlib.Path, names: Sequence[str] = SERVERS, before: pathlib.Path | None = None
) -> Iterator[dict[str, Server]]:
    """The servers of these names, ready to answer. `before`: another checkout, whose code serves the run as "before" too."""
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
    options = as_flags(replica_options(MODEL, ServeConfig(), plan, video_loader.media_io_kwargs(SPEC)))
    arguments = ["--model", MODEL.path, "--served-model-name", NAME, "--host", "127.0.0.1", *options]
    ports = {name: free_port() for name in (*SERVERS, "before")}
    key = add_key(log / "keys.txt", "bench")
    ours = [sys.executable, "-m", "pipelines.cli", "serve"]
    of_runs = ("several", "before") if before else ("several",)
    shared = ["cluster.address=local", f"serve.access.keys_file={log / 'keys.txt'}"]
    commands = {
        "ours": [
            *(*ours, MODEL.path, f"serve.port={ports['ours']}", *shared),
            *(f"model.dtype={MODEL.dtype}", f"model.max_model_len={MODEL.max_model_len}"),
            *(f"video.{name}={getattr(SPEC, name)}" for name in ("num_frames", "height", "width")),
        ],
        **{name: [*ours, str(a_run(log / f"run-{name}")), f"serve.port={ports[name]}", *shared] for name in of_runs},
        "vllm": [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port", str(ports["vllm"]), *arguments],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": str(NICENESS)}
    running: dict[str, Server] = {}
    commands = {name: command for name, command in commands.items() if name in (*names, "before")}
    try:
        for name, command in commands.items():
            own = {"PYTHONPATH": str(before)} if name == "before" else {}
            own |= replica_environment(plan, video_loader.NAME) if name == "vllm" else {}
            with (log / f"{name}.log").open("w") as file:
                where = before if name == "before" else None
                process = subprocess.Popen(
                    command, stdout=file, stderr=file, env=environment | own, cwd=where, start_new_session=True
                )
            model = "base" if name in ("several", "before") else NAME
            url, own_key = f"http://127.0.0.1:{ports[name]}/v1", "" if name == "vllm" else key
            server = Server(name=name, url=url, process=process, model=model, key=own_key)
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


def a_run(folder: pathlib.Path) -> pathlib.Path:
    """A run folder whose base and aligned policy are both the built-in model."""
    exported = folder / "rounds/0/model"
    shutil.copytree(MODEL.path, exported)
    files.write_json(exported / CARD, {"version": "bench", "parent": "", "frame_spec": SPEC.to_row()})
    config = {
        "run_dir": str(folder),
        "model": {**MODEL.model_dump(mode="json"), "path": str(pathlib.Path(MODEL.path).absolute())},
        "data": {"train": "unused.jsonl"},
        "video": {name: getattr(SPEC, name) for name in ("num_frames", "height", "width")},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def bodies(videos: list[str] | None, count: int, num_tokens: int = MAX_NEW_TOKENS) -> list[bytes]:
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

    requests = [json.dumps({**json.loads(body), "model": server.model}).encode() for body in requests]

    async def run() -> tuple[float, list[float]]:
        latencies: list[float] = []
        todo = iter(requests)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:

            async def worker() -> None:
                for body in todo:
                    began = time.perf_counter()
                    headers = {"Content-Type": "application/json", **server.headers}
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
        with server.open(30) as response:
            response.read()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def latency_by_tokens(running: dict[str, Server], turns: int) -> dict[str, dict[str, float]]:
    """Median latency in seconds of text requests, one at a time, for replies of 1 and of 24 tokens."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"1": [], str(MAX_NEW_TOKENS): []} for name in running}
    for _ in range(turns):
        for name, server in running.items():
            for num_tokens in (1, MAX_NEW_TOKENS):
                seconds[name][str(num_tokens)] += ask(server, bodies(None, 10, num_tokens), 1)[1]
    return {name: {key: statistics.median(values) for key, values in found.items()} for name, found in seconds.items()}


def measure(running: dict[str, Server], videos: list[str], rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """One row a workload and concurrency; the first turn warms up and does not count. `quick`: without it, one request each."""
    rows = []
    for kind, urls in (("text", None), ("video", videos)):
        for concurrency in CONCURRENCY:
            count = concurrency if quick else NUM_REQUESTS[concurrency]
            requests = bodies(urls, count)
            row: dict[str, Any] = {"kind": kind, "concurrency": concurrency, "num_requests": count}
            row |= {name: {} for name in running}
            sides = {name: functools.partial(ask, server, requests, concurrency) for name, server in running.items()}
            for name, answers in results_in_turns(sides, rounds, warm_up=0 if quick else 1).items():
                row[name]["requests_per_s"] = [count / seconds for seconds, _ in answers]
                row[name]["median_s"] = [statistics.median(latencies) for _, latencies in answers]
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    add_arguments(parser, quick="one turn of a few requests")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    from examples.shapes.make_videos import make

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make(folder, {"heldout": 16}, 0)
        paths = sorted(folder.rglob("*.mp4"))[:16]
        videos = [serve_decode.as_url(path) for path in paths]
        decoded = serve_decode.measure(videos, folder / "frames", rounds, quick=arguments.quick)
        print(decoded, flush=True)
        with servers(folder) as running:
            found = {
                "rounds": rounds,
                "niceness": NICENESS,
                "decoded": decoded,
                "rows": measure(running, videos, rounds, quick=arguments.quick),
                "latency_by_tokens_s": latency_by_tokens(running, rounds),
                "empty_round_trip_s": {name: empty_round_trip(server) for name, server in running.items()},
                "versions": versions(),
            }
    publish(arguments, PERFORMANCE, "serve", found, page(found))


if __name__ == "__main__":
    main()
