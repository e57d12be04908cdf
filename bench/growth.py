"""1x, 5x and 20x data through rollout and train: wall time after start-up, and peak memory of the driver and of every actor.

    python -m bench.growth [--size 120] [--rounds 3] [--again]

Each size is a run of its own in runs/growth/N, by the command that a user would give; the sizes take turns, so that a slow hour of
the machine falls on all of them. What was measured is not run again, so the script can be stopped and continued. Peaks are the
kernel's (VmHWM), read while a run lasts.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
from typing import Any

import yaml

from bench.memory import resident
from bench.pages import PERFORMANCE, write_part
from pipelines.summary import versions
from vidalign import files

RESULTS = pathlib.Path("bench/results/growth.json")
PLOT = pathlib.Path("docs/growth.png")
ROOT = pathlib.Path("runs/growth")
FACTORS = (1, 5, 20)
CHUNK, BATCH = 10, 4  # examples of a rollout chunk, pairs of a training step
MIB = 2**20
# Caches grow to a bound of their own, which few of these small videos would reach: vLLM's of processed videos and of keys and
# values, and oneDNN's two of compiled CPU kernels, one a shape. Lower bounds are reached at every size.
ENGINE_ARGS = {"mm_processor_cache_gb": 1 / 64, "kv_cache_memory_bytes": 32 * MIB}
KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}
# What a process is, by its title; the first that matches counts.
ROLES = {
    "driver": r"pipelines\.cli",
    "generator (vLLM)": r"ray::.*Generator",
    "decoder": r"ray::.*Decoder|decode_child",
    "learner (DeepSpeed)": r"ray::.*(RayTrainWorker|TrainWorker)",
    "Ray Train controller": r"ray::.*TrainController",
    "other Ray workers": r"ray::",
    "Ray's own processes": r"raylet|gcs_server|ray/",
}


def run_size(num_questions: int) -> dict[str, Any]:
    """Make the data, run rollout and train in one process, and read what they took."""
    from examples.shapes.make_videos import make

    folder = ROOT / str(num_questions)
    shutil.rmtree(folder, ignore_errors=True)
    make(folder / "data", {"train": num_questions, "probe": 8}, 0)
    raw = {
        "run_dir": str(folder / "run"),
        "model": {"path": "examples/shapes/model", "dtype": "float32", "max_model_len": 512},
        "data": {"train": str(folder / "data/train.jsonl"), "probe": str(folder / "data/probe.jsonl")},
        "video": {"num_frames": 8, "height": 56, "width": 56},
        "recipe": {"num_candidates": 2, "max_new_tokens": 24},
        "rollout": {"batch_size": CHUNK, "engine_args": ENGINE_ARGS},
        "train": {
            "learning_rate": 1e-4,
            "batch_size": BATCH,
            "micro_batch_size": BATCH,
            "log_every": 2,
            "checkpoint_every": 1000,
            "num_monitored": 8,
        },
        "cluster": {"address": "local"},
    }
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(raw))
    began = time.monotonic()
    command = [sys.executable, "-m", "pipelines.cli", "align", str(config)]  # without held-out questions nothing is served
    with (folder / "console.txt").open("w") as console:
        environment = {**os.environ, **KERNEL_CACHES}
        process = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, env=environment)
        peaks = watch(process)
    if process.returncode:
        raise SystemExit((folder / "console.txt").read_text()[-3000:])
    run = folder / "run/rounds/0"
    parts = [files.read_json(path) for path in sorted((run / "responses/parts").glob("*.json"))]
    chunks = [part["engine_s"]["waiting"] + part["engine_s"]["working"] for part in parts[1:]]
    steps = files.read_jsonl(run / "train/metrics.jsonl")[1:]  # the first row is of the model before training
    return {
        "num_questions": num_questions,
        "num_pairs": files.read_json(run / "pairs/manifest.json")["kept"],
        "chunk_s": chunks,
        "step_s": [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(steps)],
        "rollout_s": sum(chunks),
        "train_s": steps[-1]["seconds"] - steps[0]["seconds"],
        "whole_s": time.monotonic() - began,
        "peak_mib": {role: round(peak / MIB, 1) for role, peak in peaks.items()},
    }


def watch(process: subprocess.Popen) -> dict[str, int]:
    """Wait for a process; returns the peak resident memory of its tree by role, the largest where several share one."""
    names = list(ROLES)
    role_of: dict[int, int] = {}  # a worker's title changes with what it does; the most telling one counts
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in tree(process.pid):
            try:
                title = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                peaks[pid] = resident("VmHWM", pid)
            except (FileNotFoundError, ProcessLookupError, RuntimeError):
                continue
            for index, name in enumerate(names):
                if re.search(ROLES[name], title):
                    role_of[pid] = min(index, role_of.get(pid, index))
        time.sleep(0.3)
    roles: dict[str, int] = {}
    for pid, index in sorted(role_of.items(), key=lambda item: item[1]):
        roles[names[index]] = max(roles.get(names[index], 0), peaks.get(pid, 0))
    return roles


def tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


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
            "Written by `python -m bench.growth`: the built-in model and distinct built-in videos, recipe leanpo with 2 candidates, "
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
            f"ray {versions().get('ray')}. Medians of {rows[0]['num_runs']} runs a size, the sizes in turn.",
            "",
        ]
    )


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several runs of one size as one: medians, and all chunks and steps."""
    first = runs[0]
    return {
        "num_questions": first["num_questions"],
        "num_runs": len(runs),
        **{name: statistics.median(run[name] for run in runs) for name in ("num_pairs", "rollout_s", "train_s", "whole_s")},
        **{name: [seconds for run in runs for seconds in run[name]] for name in ("chunk_s", "step_s")},
        "drift": {name: statistics.median(drift(run[name]) for run in runs) for name in ("chunk_s", "step_s")},
        "peak_mib": {role: statistics.median(run["peak_mib"].get(role, math.nan) for run in runs) for role in ROLES},
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


def plot(rows: list[dict[str, Any]]) -> None:
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
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=120, help="questions of 1x")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every size")
    parser.add_argument("--again", action="store_true", help="measure every size anew")
    arguments = parser.parse_args()
    runs = [] if arguments.again or not RESULTS.is_file() else files.read_json(RESULTS)["runs"]
    sizes = [factor * arguments.size for factor in FACTORS]
    for size in sizes * arguments.rounds:
        done = collections.Counter(run["num_questions"] for run in runs)
        if done[size] == min(done[other] for other in sizes) < arguments.rounds:
            runs.append(run_size(size))
            print(runs[-1], flush=True)
            files.write_json(RESULTS, {"runs": runs, "versions": versions()})
    rows = [merged([run for run in runs if run["num_questions"] == size]) for size in sizes]
    plot(rows)
    write_part(PERFORMANCE, "growth.md", page(rows))


if __name__ == "__main__":
    main()
