"""1x, 5x and 20x data through rollout and train: wall time after start-up, and peak memory of the driver and of every actor.

    vidalign bench growth [--size 120] [--rounds 3] [--again]

Each size is a run of its own in runs/growth/N, by the command that a user would give; the sizes take turns, so that a slow hour of
the machine falls on all of them. What was measured is not run again, so the script can be stopped and continued. Peaks are the
kernel's (VmHWM), read while a run lasts.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from bench.built_in import MAX_NEW_TOKENS, make_run
from bench.growth_page import BATCH, CHUNK, ENGINE_ARGS, KERNEL_CACHES, MIB, merged, page, plot
from bench.memory import resident
from bench.pages import PERFORMANCE, Output, add_arguments
from pipelines.summary import versions
from vidalign import files

FACTORS = (1, 5, 20)
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


def run_size(root: pathlib.Path, num_questions: int) -> dict[str, Any]:
    """Make the data, run rollout and train in one process, and read what they took."""
    folder = root / str(num_questions)
    shutil.rmtree(folder, ignore_errors=True)
    config = folder / "config.json"  # JSON is YAML
    files.write_json(config, run_config(folder, num_questions))
    began = time.monotonic()
    command = [sys.executable, "-m", "pipelines.cli", "align", str(config)]  # without held-out questions nothing is served
    with (folder / "console.txt").open("w") as console:
        environment = {**os.environ, **KERNEL_CACHES}
        process = subprocess.Popen(command, stdout=console, stderr=subprocess.STDOUT, env=environment)
        peaks = watch(process)
    if process.returncode:
        raise SystemExit((folder / "console.txt").read_text()[-3000:])
    return {
        "num_questions": num_questions,
        **figures_of(folder / "run"),
        "whole_s": time.monotonic() - began,
        "peak_mib": {role: round(peak / MIB, 1) for role, peak in peaks.items()},
    }


def run_config(folder: pathlib.Path, num_questions: int) -> dict[str, Any]:
    """Make the data of one size, and the configuration of its run."""
    train = {
        "learning_rate": 1e-4,
        "batch_size": BATCH,
        "micro_batch_size": BATCH,
        "log_every": 2,
        "checkpoint_every": 1000,
        "num_monitored": 8,
    }
    return make_run(
        folder,
        {"train": num_questions, "probe": 8},
        recipe={"num_candidates": 2, "max_new_tokens": MAX_NEW_TOKENS},
        rollout={"batch_size": CHUNK, "engine_args": ENGINE_ARGS},
        train=train,
    )


def figures_of(run: pathlib.Path) -> dict[str, Any]:
    """Seconds of each chunk of a finished run but the first and of each training step, and the number of its pairs."""
    first_round = run / "rounds/0"
    parts = [files.read_json(path) for path in sorted((first_round / "responses/parts").glob("*.json"))]
    chunks = [part["engine_s"]["waiting"] + part["engine_s"]["working"] for part in parts[1:]]
    steps = files.read_jsonl(first_round / "train/metrics.jsonl")[1:]  # the first row is of the model before training
    return {
        "num_pairs": files.read_json(first_round / "pairs/manifest.json")["kept"],
        "chunk_s": chunks,
        "step_s": [(b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in itertools.pairwise(steps)],
        "rollout_s": sum(chunks),
        "train_s": steps[-1]["seconds"] - steps[0]["seconds"],
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


def next_size(runs: Sequence[dict[str, Any]], sizes: Sequence[int], rounds: int) -> int | None:
    """The size to run next, so that the sizes take turns; None where each has its runs."""
    done = collections.Counter(run["num_questions"] for run in runs)
    size = min(sizes, key=lambda size: done[size])
    return size if done[size] < rounds else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=120, help="questions of 1x")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every size")
    parser.add_argument("--again", action="store_true", help="measure every size anew")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/growth"), help="where the runs go")
    add_arguments(parser)
    arguments = parser.parse_args()
    out = arguments.out or Output()
    runs = [] if arguments.again else (out.found("growth") or {"runs": []})["runs"]
    sizes = [factor * arguments.size for factor in FACTORS]
    while (size := next_size(runs, sizes, arguments.rounds)) is not None:
        runs.append(run_size(arguments.root, size))
        print(runs[-1], flush=True)
        out.keep("growth", {"runs": runs, "versions": versions()})
    rows = [merged([run for run in runs if run["num_questions"] == size], list(ROLES)) for size in sizes]
    out.write_part(PERFORMANCE, "growth", page(rows))
    plot(rows, out.docs / "growth.png")


if __name__ == "__main__":
    main()
