"""Every method and ablation on the built-in data, several seeds each; writes docs/results.md and its plots.

    python -m bench.quality [--seeds 5] [--root runs/quality] [--parallel 2] [--arms LeanPO DPO …] [--until-min 60]

    1. pairs   every recipe and seed, one vLLM engine        3. runs   every arm and seed at its learning rate, on held-out
    2. sweep   every method, every rate of the grid, on dev  4. page   from whatever is finished

What is on disk is not made again, so the script can be stopped at any time and run in pieces. A run keeps its figures and
metrics; its weights are deleted when they have been measured.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.pages import Output, add_arguments
from bench.quality.arms import ARMS, GRID, METHODS, SWEEP_SEED
from bench.quality.data import make_all_pairs, prepare
from bench.quality.page import write_page
from bench.quality.run import BASE, run_folder
from vidalign import files

Job = tuple[str, int, float, str]  # arm, seed, learning rate, split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/quality"))
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--until-min", type=float, default=float("inf"), help="start nothing new after so many minutes")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is on disk")
    add_arguments(parser)
    arguments = parser.parse_args()
    root, deadline = arguments.root, time.monotonic() + 60 * arguments.until_min
    if not arguments.page_only:
        arms = [ARMS[name] for name in arguments.arms]
        data = prepare(root)
        methods = [name for name in METHODS if name in {arm.method for arm in arms}]
        make_all_pairs(data, [SWEEP_SEED], sorted({ARMS[name].recipe for name in methods}))
        make_all_pairs(data, range(arguments.seeds), sorted({arm.recipe for arm in arms}))
        sweep = [(name, SWEEP_SEED, rate, "dev") for rate in GRID for name in methods]
        _run_all(root, [(BASE, 0, 0.0, "heldout"), *sweep], arguments.parallel, deadline)
        rates = {name: best_rate(root, name) for name in methods}
        jobs = [(arm.name, seed, rates[arm.method], "heldout") for seed in range(arguments.seeds) for arm in arms]
        _run_all(root, jobs, arguments.parallel, deadline)
    rates = {name: best_rate(root, name) for name in METHODS if is_swept(root, name)}
    write_page(root, rates, arguments.out or Output())


def is_swept(root: pathlib.Path, method: str) -> bool:
    return all((run_folder(root, method, SWEEP_SEED, rate) / "result.json").is_file() for rate in GRID)


def best_rate(root: pathlib.Path, method: str) -> float:
    """The rate with the best dev accuracy; of equals the lowest."""
    accuracy = {
        rate: files.read_json(run_folder(root, method, SWEEP_SEED, rate) / "result.json")["accuracy"] for rate in GRID
    }
    return max(GRID, key=lambda rate: (accuracy[rate], -rate))


def _run_all(root: pathlib.Path, jobs: Sequence[Job], parallel: int, deadline: float) -> None:
    todo = [job for job in jobs if not (run_folder(root, *job[:3]) / "result.json").is_file()]

    def run_one(job: Job) -> str:
        if time.monotonic() > deadline:
            return "late"
        folder = run_folder(root, *job[:3])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with (folder / "console.txt").open("w") as console:
            command = [sys.executable, "-m", "bench.quality.run", str(root), *map(str, job)]
            status = subprocess.run(command, stdout=console, stderr=console, check=False).returncode
        for name in ("model", "reference"):
            shutil.rmtree(folder / name, ignore_errors=True)
        if status:
            return f"FAILED, see {folder / 'console.txt'}"
        result = files.read_json(folder / "result.json")
        return f"accuracy {result['accuracy']:.3f} on {result['split']}"

    with ThreadPoolExecutor(parallel) as pool:
        outcomes = []
        for number, (job, outcome) in enumerate(zip(todo, pool.map(run_one, todo), strict=True), start=1):
            outcomes.append(outcome)
            print(f"{number}/{len(todo)} {job[0]} seed {job[1]} rate {job[2]:g}: {outcome}", flush=True)
    if any(outcome != "late" and outcome.startswith("FAILED") for outcome in outcomes):
        raise SystemExit("some runs failed; correct the cause and run the same command again")
    if "late" in outcomes:
        print(f"{outcomes.count('late')} runs left; run the same command again")
        if not all(is_swept(root, name) for name in METHODS):
            raise SystemExit(0)


if __name__ == "__main__":
    main()
