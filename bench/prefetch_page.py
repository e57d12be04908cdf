"""The part of docs/performance.md that bench/prefetch.py writes, and what is compared in it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.pages import versions_line

RENDER_S = 0.3  # of a prompt
DEVICE_S = 0.4  # of a pair, where the device is a wait
EVERY = 64  # pairs, after which is measured
MEASURED, PROBED = 2, 1
GOAL = 0.03  # of the time


def shares(runs: Sequence[Mapping[str, float]], *names: str) -> list[float]:
    """What these parts took of each run."""
    return [sum(run[name] for name in names) / run["total"] for run in runs]


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    runs, pairs = found["runs"], found["num_pairs"]

    def share(name: str, *parts: str) -> str:
        values = shares(runs[name], *parts)
        return f"{statistics.median(values):.1%} ({min(values):.1%} to {max(values):.1%})"

    rows = [
        f"| {name} | {statistics.median(run['total'] for run in runs[name]) / pairs:.2f} | {share(name, 'waits')} | "
        f"{share(name, 'measurements')} |"
        for name in ("ahead", "in turn")
    ]
    both = statistics.median(shares(runs["ahead"], "waits", "measurements"))
    device = "" if found["on_gpu"] else f"; so is the device, {DEVICE_S:g} s a pair around a tiny model"
    return "\n".join(
        [
            "## Rendering ahead",
            "",
            f"Written by `vidalign bench prefetch` on {found['device']}, {found['threads']} threads, {found['dtype']}: a training on "
            f"{pairs} pairs with the real learner, one pair a forward pass, where rendering a prompt takes {RENDER_S:g} s (a wait, in "
            f"place of work on cores that training leaves free{device}). *Ahead* renders in a thread one forward pass ahead; *in "
            f"turn* renders when a batch is needed. Both measure {MEASURED} pairs and {PROBED} probe row for every {EVERY} pairs. "
            f"Medians of {len(runs['ahead'])} turns (minimum to maximum).",
            "",
            "| variant | s a pair | waits for batches | measurements |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Goal: with *ahead* both together are at most {GOAL:.0%} of the time: {'reached' if both <= GOAL else 'missed'} "
            f"({both:.1%}).",
            "",
            f"{versions_line('torch', 'transformers', 'deepspeed')}. Only run on {'a GPU' if found['on_gpu'] else 'CPUs'}.",
            "",
        ]
    )
