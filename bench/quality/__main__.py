"""Every method and ablation on the data of a task, several seeds each; writes its part of docs/results.md and its plots.

    python -m bench.quality [--task shapes] [--seeds 5] [--root FOLDER] [--parallel 2] [--arms LeanPO DPO …] [--until-min 60]

    1. pairs   every recipe and seed, one vLLM engine        3. runs   every arm and seed at its learning rate, on held-out
    2. sweep   every arm, every rate of the grid, on dev     4. page   from whatever is finished

What is on disk is not made again, so the script can be stopped at any time and run in pieces. A run keeps its figures and
metrics; its weights are deleted when they have been measured.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time

from bench.pages import Output, add_arguments
from bench.quality import events_page, page
from bench.quality.data import Data, make_all_pairs, prepare
from bench.quality.queue import Queue
from bench.quality.run import BASE, Job
from bench.quality.sweep import best_rate, is_swept, missing_rates
from bench.quality.tasks import TASKS

PAGES = {"shapes": page.write_page, "events": events_page.write_page}
BASE_SPLITS = {"shapes": ("heldout",), "events": ("heldout", "dev", "train")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="shapes", choices=list(PAGES))
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--root", type=pathlib.Path, help="where everything is made; default runs/quality/TASK")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="of these arms only")
    parser.add_argument("--until-min", type=float, default=float("inf"), help="start nothing new after so many minutes")
    parser.add_argument("--pairs-only", action="store_true", help="make the pairs, and stop")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is on disk")
    add_arguments(parser)
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    arms = arguments.arms or list(task.arms)
    if unknown := set(arms) - set(task.arms):
        parser.error(f"{', '.join(sorted(unknown))}: not among the arms of {task.name}, which are {', '.join(task.arms)}")
    root = arguments.root or pathlib.Path("runs/quality", task.name)
    if not arguments.page_only:
        data = prepare(task, root)
        make_pairs_of_arms(data, arms, arguments.seeds)
        if arguments.pairs_only:
            return
        queue = Queue(task, root, arguments.parallel, time.monotonic() + 60 * arguments.until_min)
        run_all(queue, arms, arguments.seeds)
    rates = {name: best_rate(task, root, name) for name in task.arms if is_swept(task, root, name)}
    PAGES[task.name](root, rates, arguments.out or Output())


def make_pairs_of_arms(data: Data, arms: list[str], num_seeds: int) -> None:
    """The pairs that these arms train on, with the dev seeds and so many others."""
    make_all_pairs(data, [*data.task.dev_seeds, *range(num_seeds)], sorted({data.task.arms[name].recipe for name in arms}))


def run_all(queue: Queue, arms: list[str], num_seeds: int) -> None:
    """The base, then dev runs until every arm's best rate has neighbours on both sides, then the runs that are reported."""
    task = queue.task
    queue.run([Job(BASE, split=split) for split in BASE_SPLITS[task.name]])
    while jobs := [
        Job(name, seed, rate, "dev")
        for name in arms
        for rate in missing_rates(task, queue.root, name)
        for seed in task.dev_seeds
    ]:
        queue.run(jobs)
    rates = {name: best_rate(task, queue.root, name) for name in arms if is_swept(task, queue.root, name)}
    queue.run([Job(arm, seed, rates[arm]) for seed in range(num_seeds) for arm in arms if arm in rates])


if __name__ == "__main__":
    main()
