"""The part of docs/performance.md that bench/growth.py writes, its plot, and the settings that they name."""

from __future__ import annotations

import itertools
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from bench.pages import versions_line

CHUNK, BATCH = 10, 4  # examples of a rollout chunk, pairs of a training step
MIB = 2**20
# Caches grow to a bound of their own, which few of these small videos would reach: vLLM's of processed videos and of keys and
# values, and oneDNN's two of compiled CPU kernels, one a shape. Lower bounds are reached at every size.
ENGINE_ARGS = {"mm_processor_cache_gb": 1 / 64, "kv_cache_memory_bytes": 32 * MIB}
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}


def page(rows: list[dict[str, Any]]) -> str:
    """The Markdown part."""
    rollout = [1000 * statistics.median(row["chunk_s"]) / CHUNK for row in rows]
    train = [1000 * statistics.median(row["step_s"]) for row in rows]
    table = [
        f"| {row['num_questions'] // rows[0]['num_questions']}x | {row['num_questions']:,} | {row['num_pairs']:,.0f} | "
        f"{row['rollout_s']:.1f} s | {a:.1f} ms | {row['train_s']:.1f} s | {b:.1f} ms | {row['whole_s']:.0f} s |"
        for row, a, b in zip(rows, rollout, train, strict=True)
    ]
    memory = [
        f"| {role} | "
        + " | ".join(f"{peak:,.0f}" for peak in peaks)
        + f" | {peaks[-1] / peaks[0] - 1:+.1%} | "
        + " | ".join(f"{slope:+.0f}" for slope in slopes(rows, role))
        + " |"
        for role, peaks in ((role, [row["peak_mib"][role] for row in rows]) for role in rows[0]["peak_mib"])
    ]
    off = {
        name: max(abs(value / values[-1] - 1) for value in values[:-1])
        for name, values in (("rollout", rollout), ("train", train))
    }
    verdict = "; ".join(
        f"{name} departs from it by at most {value:.1%} ({'within' if value <= 0.05 else 'beyond'} the goal of 5 %), and its wall "
        f"time at 5x is {line(rows, f'{name}_s'):+.1%} off the straight line through 1x and 20x"
        for name, value in off.items()
    )
    return "\n".join(
        [
            "## Growth",
            "",
            "Written by `vidalign bench growth`: the built-in model and distinct built-in videos, recipe leanpo with 2 candidates, "
            f"chunks of {CHUNK} questions, training steps of {BATCH} pairs, one epoch, 2 CPU cores. Times are those after start-up: "
            "rollout from the second chunk on (engine at work or waiting for it), training from the first logged step to the last; "
            "*whole* is the command with every start.",
            "",
            "| data | questions | pairs | rollout | a question | train | a step | whole |",
            "|---|---|---|---|---|---|---|---|",
            *table,
            "",
            "A question and a step are medians over the chunks and logged steps of all runs. Linear would be the same time at every "
            f"size: {verdict}. Within a run of 20x the last quarter took {rows[-1]['drift']['chunk_s']:+.1%} a chunk and "
            f"{rows[-1]['drift']['step_s']:+.1%} a step against the first.",
            "",
            "Peak resident memory in MiB, of the largest process of a kind:",
            "",
            "| process | "
            + " | ".join(f"{row['num_questions'] // rows[0]['num_questions']}x" for row in rows)
            + " | 1x to 20x | KiB a question, 1x to 5x | 5x to 20x |",
            "|---|" + "---|" * (len(rows) + 3),
            *memory,
            "",
            f"{memory_verdict(rows)}. Pairing and training look at all pairs of a round, so the driver and the learner hold texts and "
            "marks of each, without pixels and log-probs. Decoder and generator hold none of it: theirs is what their libraries keep.",
            "",
            "So that every size fills them, caches with a bound have a lower one here than by default: vLLM's of processed videos "
            f"{ENGINE_ARGS['mm_processor_cache_gb'] * 1024:.0f} MiB (4 GiB) and of keys and values "
            f"{ENGINE_ARGS['kv_cache_memory_bytes'] // MIB} MiB (1 GiB on CPUs), oneDNN's of CPU kernels "
            f"{KERNEL_CACHES['LRU_CACHE_CAPACITY']} shapes (1,024). With the defaults a run grows until these are full.",
            "",
            "![Wall time and peak memory against the amount of data](growth.png)",
            "",
            f"{versions_line('ray')}. Medians of {rows[0]['num_runs']} runs a size, the sizes in turn.",
            "",
        ]
    )


def merged(runs: list[dict[str, Any]], roles: Sequence[str]) -> dict[str, Any]:
    """Several runs of one size as one: medians, and all chunks and steps. `roles`: the processes whose memory is shown."""
    first = runs[0]
    return {
        "num_questions": first["num_questions"],
        "num_runs": len(runs),
        **{name: statistics.median(run[name] for run in runs) for name in ("num_pairs", "rollout_s", "train_s", "whole_s")},
        **{name: [seconds for run in runs for seconds in run[name]] for name in ("chunk_s", "step_s")},
        "drift": {name: statistics.median(drift(run[name]) for run in runs) for name in ("chunk_s", "step_s")},
        "peak_mib": {role: statistics.median(run["peak_mib"].get(role, math.nan) for run in runs) for role in roles},
    }


def line(rows: list[dict[str, Any]], name: str) -> float:
    """How far the middle size is from the straight line through the smallest and the largest, as a share of it."""
    small, middle, large = ((row["num_questions"], row[name]) for row in rows)
    on_line = small[1] + (large[1] - small[1]) * (middle[0] - small[0]) / (large[0] - small[0])
    return middle[1] / on_line - 1


def slopes(rows: list[dict[str, Any]], role: str) -> list[float]:
    """KiB of peak memory that each further question takes, from size to size."""
    return [
        1024 * (b["peak_mib"][role] - a["peak_mib"][role]) / (b["num_questions"] - a["num_questions"])
        for a, b in itertools.pairwise(rows)
    ]


def memory_verdict(rows: list[dict[str, Any]]) -> str:
    """Which kinds of process did not stay within 5 %, and whether their growth ends."""
    grown = []
    for role, first in rows[0]["peak_mib"].items():
        if rows[-1]["peak_mib"][role] > 1.05 * first:
            early, late = slopes(rows, role)
            grown.append(f"{role}, whose growth {'slows to less than half' if late < early / 2 else 'goes on'}")
    if not grown:
        return "Goal: flat. Every kind of process is within 5 % of its peak at 1x"
    return f"Goal: flat. Beyond 5 % of the peak at 1x, so missed by: {'; '.join(grown)}"


def drift(seconds: list[float]) -> float:
    """How much longer the last quarter takes than the first, by medians."""
    quarter = max(1, len(seconds) // 4)
    return statistics.median(seconds[-quarter:]) / statistics.median(seconds[:quarter]) - 1


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Wall time and peak memory against the number of questions."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    questions = [row["num_questions"] for row in rows]
    for name, style in (("rollout", "o-"), ("train", "s--")):
        left.plot(questions, [row[f"{name}_s"] for row in rows], style, label=name)
    left.set(xlabel="questions", ylabel="seconds after start-up", title="Wall time", ylim=(0, None), xlim=(0, None))
    left.legend(frameon=False)
    for role in ("driver", "generator (vLLM)", "decoder", "learner (DeepSpeed)"):
        right.plot(questions, [row["peak_mib"][role] for row in rows], "o-", label=role)
    right.set(xlabel="questions", ylabel="MiB", title="Peak memory", ylim=(0, None), xlim=(0, None))
    right.legend(frameon=False, fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.66))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
