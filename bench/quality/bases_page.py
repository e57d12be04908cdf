"""The part of docs/results.md that `bench.quality.bases` writes: the events task by base."""

from __future__ import annotations

import math
import statistics
from typing import Any

from bench.intervals import interval
from bench.quality.arms import BASE
from bench.quality.events_page import difference, verdict
from bench.quality.tables import Rows, at, cell, column, runs_by_arm, table

ARMS = ("SFT", "LeanPO", "DPO", "RRPO")
COMPARED = (
    *((arm, BASE) for arm in ARMS),
    ("SFT", "LeanPO"),
    ("LeanPO", "DPO"),
    ("LeanPO", "RRPO"),
)


def page(found: dict[str, Any], first: dict[str, Any], first_asked: dict[str, Any]) -> str:
    """The part. `first`: the figures of the base of seed 0 (bench/results/events.json), `first_asked`: of `evaluate_base`."""
    bases = {"0": (first["base"]["heldout"], runs_by_arm(first, ARMS))}
    bases |= {seed: (each["base"], runs_by_arm(each, ARMS)) for seed, each in found["bases"].items()}
    counts = [len(rows) for _, by_arm in bases.values() for rows in by_arm.values()]
    seeds = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])
    questions = sorted({base["num_questions"] for base, _ in bases.values()})
    rates = ", ".join(f"{arm} {rate:g}" for arm, rate in found["rates"].items())
    lines = [
        "## The events task on three bases" if len(bases) == 3 else f"## The events task on {len(bases)} bases",
        "",
        f"Written by `python -m bench.quality.bases`: the same videos and {questions[0]} held-out questions, with bases that "
        f"`examples/events/train_base.py` made of other seeds, {seeds} seeds of each arm (how many: in brackets). Learning rates are "
        f"those chosen on dev questions with the base of seed 0 ({rates}); others may be best elsewhere. Within a base ± is the 95 % "
        "interval over its seeds; *over bases* it is that of the mean of the bases' means, with each base as one observation.",
        "",
        *table(
            ("phrase F1, %", *(f"base {seed}" for seed in bases)),
            [
                [BASE, *(cell([100 * base["f1"]]) for base, _ in bases.values())],
                *([arm, *(_cell(by_arm.get(arm)) for _, by_arm in bases.values())] for arm in ARMS),
            ],
        ),
        "",
        *asked_lines({"0": first_asked} | {seed: each["asked"] for seed, each in found["bases"].items()}),
        *table(
            ("F1 of two arms, points, paired by seed", *(f"base {seed}" for seed in bases), "over bases"),
            [_compared(one, other, bases) for one, other in COMPARED],
        ),
        "",
        *pairs_lines(found, first),
        f"{found['versions']}. Bases 1 and 2 were trained on a GPU; everything else ran on CPUs.",
    ]
    return "\n".join(lines) + "\n"


def asked_lines(asked: dict[str, dict[str, Any] | None]) -> list[str]:
    """What `examples.events.evaluate_base` says of each base: blind, and of hinted replies by turn."""
    known = {seed: found for seed, found in asked.items() if found}

    def line(name: str, figures: dict[str, Any]) -> list[str]:
        turns = [f"{100 * turn['f1']:.1f} / {100 * turn['true']:.1f}" for turn in figures["turns"]]
        shown = (figures[name]["f1"] for name in ("base", "noise", "swapped"))
        return [f"base {name}", str(figures["num_examples"]), *(f"{100 * f1:.1f}" for f1 in shown), *turns]

    header = (
        "of the first questions",
        "questions",
        "F1, the video",
        "noise",
        "another video",
        *(f"K = {k}" for k in (1, 2, 3)),
    )
    return [
        *table(header, [line(seed, figures) for seed, figures in known.items()]),
        "",
        "K: sampled replies to training questions with their hints after so many turns: F1, and the share without a wrong phrase.",
        "",
    ]


def _cell(rows: Rows | None) -> str:
    return f"{column(rows, at('f1'), 100)} ({len(rows)})" if rows else "not run"


def _compared(one: str, other: str, bases: dict[str, tuple[dict[str, Any], dict[str, Rows]]]) -> list[str]:
    """A row: the difference on each base, and over all bases that have both arms."""
    cells, means = [], []
    for base, by_arm in bases.values():
        if one not in by_arm or (other != BASE and other not in by_arm):
            cells.append("not run")
            continue
        values = difference(base, by_arm, one, other)
        means.append(statistics.fmean(values))
        cells.append(_said(values))
    return [f"{one} minus {other}", *cells, _said(means) if means else ""]


def _said(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:+.1f}" if math.isnan(half) else f"{mean:+.1f} ± {half:.1f}, {verdict(values)}"


def pairs_lines(found: dict[str, Any], first: dict[str, Any]) -> list[str]:
    """What the pairs of recipe leanpo are like on each base."""
    of = {"0": first["pairs"]} | {seed: each["pairs"] for seed, each in found["bases"].items()}
    rows = []
    for seed, made in of.items():
        if kept := [row for row in made if row["recipe"] == "leanpo"]:
            sides = [column(kept, at(side, "f1"), 100) for side in ("plain", "chosen", "rejected")]
            rows.append([f"base {seed}", column(kept, at("kept"), digits=0), *sides])
    header = ("pairs of recipe leanpo", "pairs", "F1 of the base's plain answer, %", "F1, chosen", "F1, rejected")
    return [*table(header, rows), ""] if rows else []
