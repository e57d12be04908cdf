"""Rounds an hour with the next round's responses made beside training, and one after the other; and what that does to the answers.

    vidalign bench overlap [--rounds 3 --turns 2 --seeds 3 --questions 60 --keep FOLDER]

    in turn    rollout, then training, each with the whole machine                        max_staleness 0
    overlap    the next round's rollout beside training (cluster.overlap)                 max_staleness 1
    staleness  as overlap decides, but in turn, so that only the age of responses differs  max_staleness 1 and 2

Each run is `vidalign align` on the built-in data, without an evaluation. A round's time is taken between the ends of the first
training and of the last but one, so that neither the start is in it nor the last training, which has nothing beside it; the whole
command is timed as well. How many cores are at work meanwhile is read from the clocks of its processes. For the age of responses, the
last policies answer held-out questions through the Hugging Face model. `--turns 0` keeps the times that were measured before. Writes
bench/results/overlap.json and a part of docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psutil

from bench.built_in import MODEL, SPEC, make_run
from bench.overlap_page import page
from bench.pages import PERFORMANCE, Output, add_arguments, publish
from vidalign import files

SIDES: dict[str, dict[str, Any]] = {
    "in turn": {},
    "overlap": {"cluster": {"address": "local", "overlap": True}},
}
AGED: dict[str, dict[str, Any]] = {f"max_staleness {age}": {"max_staleness": age} for age in range(3)}
EVERY_S = 0.5  # between two looks at the clocks of processes
ALL_SIDES = SIDES | AGED
TRAIN = {"learning_rate": 1e-4, "batch_size": 16, "micro_batch_size": 16, "log_every": 100, "num_monitored": 16}
LEANPO = {"name": "leanpo", "num_candidates": 4, "max_new_tokens": 24}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {
        "recipe": LEANPO,
        "objective": {"name": "dpo", "params": {"weigh_stale": True}},
    },
    "dpo without weights": {"recipe": LEANPO, "objective": {"name": "dpo"}},
    "grpo": {
        "recipe": {"name": "group", "num_candidates": 8, "max_new_tokens": 24, "trust": "exact"},
        "objective": {"name": "grpo", "params": {"decoupled": True}},
    },
}


def run_once(
    folder: pathlib.Path,
    method: str,
    num_rounds: int,
    questions: Mapping[str, int],
    seed: int,
    *,
    answers: bool,
    **side: Any,
) -> dict[str, Any]:
    """One run: seconds of the command and of a round, how long both stages were at work at once, and the accuracy after it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        raw = make_run(
            pathlib.Path(name),
            questions,
            **METHODS[method],
            **{"rounds": num_rounds, "seed": seed, "rollout": {"batch_size": 32}, "train": TRAIN, **side},
        )
        held_out = raw["data"].pop("heldout")
        path = pathlib.Path(name, "config.json")
        files.write_json(path, raw)
        began = time.monotonic()
        work = Work([sys.executable, "-m", "vidalign", "align", str(path)])
        done = work.run()
        if done.returncode:
            raise SystemExit(f"the run with {side} failed:\n{done.stderr[-3000:]}")
        command_s, run = time.monotonic() - began, pathlib.Path(raw["run_dir"])
        manifests = {
            stage: [read(run, stage, index) for index in range(num_rounds)] for stage in ("responses", "pairs", "train")
        }
        return {
            "seed": seed,
            "command_s": command_s,
            **of_rounds(manifests),
            **work.cores(*(manifests["train"][at]["finished_at"] for at in (0, -2))),
            "accuracy": accuracy(run / f"rounds/{num_rounds - 1}/model", held_out) if answers else None,
            "base": accuracy(pathlib.Path(MODEL.path), held_out) if answers and seed == 0 else None,
        }


def timed_before() -> dict[str, Any]:
    """The times that are kept, the cores that they are of, and the commit that they were measured at.

    Raises:
        SystemExit: none were measured.
    """
    kept = Output().found("overlap")
    if kept is None:
        raise SystemExit("no times are in bench/results/overlap.json; measure some with --turns 2")
    measured = Output().measured()["overlap.md"]["commit"]
    return {"timed": kept["timed"], "cores": kept["cores"], "timed_at": kept.get("timed_at", measured)}


class Work:
    """What a command and all processes below it do on the cores of this machine: a thread writes their clocks down."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._read: list[tuple[float, float, float]] = []  # (when, its processes, all processes), in seconds

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        clocks: dict[tuple[int, float], float] = {}
        ended = threading.Event()

        def watch(parent: psutil.Process) -> None:
            while not ended.wait(EVERY_S):
                with contextlib.suppress(psutil.NoSuchProcess):
                    for process in (parent, *parent.children(recursive=True)):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            spent = process.cpu_times()
                            clocks[process.pid, process.create_time()] = spent.user + spent.system
                everything = psutil.cpu_times()
                self._read.append((time.time(), sum(clocks.values()), everything.user + everything.system + everything.nice))

        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        thread = threading.Thread(target=watch, args=(psutil.Process(process.pid),), daemon=True)
        thread.start()
        output, error = process.communicate()
        ended.set()
        thread.join()
        return subprocess.CompletedProcess(self._command, process.returncode, output, error)

    def cores(self, since: float, until: float) -> dict[str, float]:
        """How many cores it kept at work on average between two moments, in seconds since 1970, and how many all others did."""
        times, *clocks = zip(*self._read, strict=True)
        own, everything = (float(np.diff(np.interp([since, until], times, each))[0]) / (until - since) for each in clocks)
        return {"cores_at_work": own, "cores_of_others": max(0.0, everything - own)}


def read(run: pathlib.Path, stage: str, index: int) -> dict[str, Any]:
    return files.read_json(run / f"rounds/{index}/{stage}/manifest.json")


def of_rounds(manifests: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Seconds of a round, of its two stages, and in which both were at work, from the clocks of the stages' manifests."""
    trained, num = manifests["train"], len(manifests["train"])
    made = list(zip(manifests["responses"], manifests["pairs"], strict=True))
    both = sum(
        max(0.0, min(train["finished_at"], pairs["finished_at"]) - max(train["started_at"], responses["started_at"]))
        for train in trained
        for responses, pairs in made
    )
    return {
        "round_s": (trained[-2]["finished_at"] - trained[0]["finished_at"]) / (num - 2),
        "rollout_s": statistics.mean(pairs["finished_at"] - responses["started_at"] for responses, pairs in made),
        "train_s": statistics.mean(train["finished_at"] - train["started_at"] for train in trained),
        "both_s": both,
        "ages": [index - responses["policy_round"] for index, (responses, _) in enumerate(made)],
    }


def accuracy(model: pathlib.Path, held_out: str) -> float:
    """The share of held-out questions that a model answers right, greedily."""
    from bench.quality.shapes_figures import answer
    from vidalign.data.reading import read_examples
    from vidalign.model.policy import load_policy
    from vidalign.model.rendering import load_processor
    from vidalign.video.decoding import decode

    examples = read_examples(pathlib.Path(held_out))
    clips = [decode(pathlib.Path(example.video), SPEC) for example in examples]
    right = answer(load_policy(MODEL, str(model)).eval(), load_processor(str(model)), examples, clips)
    return sum(right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2, help="0 keeps the times of bench/results/overlap.json")
    parser.add_argument(
        "--seeds", type=int, default=3, help="of the runs whose accuracy is compared by staleness; 0 makes none"
    )
    parser.add_argument("--methods", nargs="*", default=["dpo"], choices=METHODS, help="whose accuracy is compared")
    parser.add_argument("--questions", type=int, default=60, help="of a round")
    parser.add_argument("--held-out", type=int, default=300)
    add_arguments(parser, quick="one turn of three rounds on few questions")
    parser.add_argument(
        "--keep", type=pathlib.Path, metavar="FOLDER", help="keep each run's figures there; make those that are missing"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.turns, arguments.seeds, arguments.questions, arguments.held_out = 3, 1, 0, 12, 12
    from cluster.session import num_cores

    questions = {"train": arguments.questions, "heldout": arguments.held_out, "probe": 8}
    with tempfile.TemporaryDirectory(prefix="overlap-") as name:
        folder = arguments.keep or pathlib.Path(name)
        folder.mkdir(parents=True, exist_ok=True)

        def of(method: str, side: str, seed: int, turn: str = "") -> dict[str, Any]:
            kept = folder / f"{method}-{side.replace(' ', '-')}-{seed}{turn}.json"
            if not kept.is_file():
                files.write_json(
                    kept, run_once(folder, method, arguments.rounds, questions, seed, answers=not turn, **ALL_SIDES[side])
                )
            print(f"{kept.stem}: {files.read_json(kept)}", flush=True)
            return files.read_json(kept)

        turns = [[of("dpo", side, 0, f"-turn-{turn}") for side in SIDES] for turn in range(arguments.turns)]
        timed = {side: [turn[place] for turn in turns] for place, side in enumerate(SIDES)} if turns else {}
        aged = {
            method: {side: [of(method, side, seed) for seed in range(arguments.seeds)] for side in AGED}
            for method in (arguments.methods if arguments.seeds else ())
        }
    found = {
        "timed": timed,
        "aged": aged,
        "rounds": arguments.rounds,
        "questions": arguments.questions,
        "held_out": arguments.held_out,
        "cores": num_cores(),
        **(timed_before() if not timed else {}),
    }
    publish(arguments, PERFORMANCE, "overlap", found, page(found))


if __name__ == "__main__":
    main()
