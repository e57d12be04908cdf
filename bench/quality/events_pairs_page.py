"""What is said of the pairs of the events task in its part of docs/results.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.quality.events import EVENTS
from bench.quality.events_figures import VERBS
from bench.quality.tables import Rows, at, column, table

SIDES = ("chosen", "rejected", "plain", "hint")


def why(pairs: Sequence[dict[str, Any]], by_arm: dict[str, Rows]) -> list[str]:
    """What the pairs offer to learn, in words; the arm LeanPO says how the base orders them before training."""
    rows = [row for row in pairs if row["recipe"] == "leanpo"]
    lines = []
    if rows:
        of = lambda *path: f"{100 * statistics.fmean(at(*path)(row) for row in rows):.0f}"  # noqa: E731
        lines = [
            f"- Winners are better than the base's own plain answers in {of('chosen to plain', 'better')} % of the pairs, as good in "
            f"{of('chosen to plain', 'equal')} % and worse in {of('chosen to plain', 'worse')} % (F1 {of('chosen', 'f1')} against "
            f"{of('plain', 'f1')}); {of('chosen', 'right')} % of them are without an error or an omission, of the plain answers "
            f"{of('plain', 'right')} %. {of('chosen equals hint')} % are the hint letter for letter, whose F1 is {of('hint', 'f1')}.",
            f"- Winners are better than losers in {of('chosen to rejected', 'better')} % of the pairs, but losers are answers to a "
            f"video in which hardly anything can be seen (F1 {of('rejected', 'f1')}): what the base says of the clean video is better "
            f"than the loser in {of('plain to rejected', 'better')} % of the pairs.",
        ]
    if rows:
        longest = [
            f"{100 * statistics.fmean(at(side, 'styles', VERBS[-1])(row) for row in rows):.0f} %" for side in SIDES[:3]
        ]
        lines.append(
            f'- The longest style, with "{VERBS[-1]}", has {longest[0]} of the winners, {longest[1]} of the losers and {longest[2]} '
            "of the base's plain answers: style tells nothing of facts, but where losers are plain answers it tells the sides apart."
        )
    if rows and (ours := by_arm.get("LeanPO")):
        ordered = statistics.fmean(row["start"]["accuracy"] for row in ours)
        lines.append(
            f"- Before training the base already finds the winner likelier, token by token, than the loser in {100 * ordered:.0f} % "
            "of the monitored pairs."
        )
    return ["### What the pairs of recipe leanpo offer", "", *lines] if lines else []


def pairs_tables(pairs: Sequence[dict[str, Any]]) -> list[str]:
    recipes = list(dict.fromkeys(row["recipe"] for row in pairs))
    quality, wins = [], []
    for recipe in recipes:
        rows = [row for row in pairs if row["recipe"] == recipe]
        f1 = [column(rows, at(side, "f1"), 100) for side in ("plain", "chosen", "rejected", "hint")]
        right = [column(rows, at(side, "right"), 100) for side in ("plain", "chosen", "rejected", "hint")]
        correlation = column(rows, at("reward_trust_correlation"), digits=2)
        quality.append([recipe, str(len(rows)), column(rows, at("kept"), digits=0), *f1, *right, correlation])
        for two in ("chosen to rejected", "chosen to plain", "chosen to hint", "plain to rejected"):
            shares = [column(rows, at(two, how), 100) for how in ("better", "equal", "worse")]
            wins.append([recipe, two, *shares])
    sides = ("base's plain answer", "chosen", "rejected", "hint")
    header = ("recipe", "seeds", "pairs", *(f"F1, {side}" for side in sides), *(f"right, {side}" for side in sides))
    return [
        f"### Pairs from {EVENTS.sizes['train']} questions, %",
        "",
        *table((*header, "rank correlation of reward and trust"), quality),
        "",
        "All four answers are to the questions of the pairs and scored by the captions; the hint is the row's own, imperfect answer. "
        "How often one is better than another by the phrase F1 of the answer:",
        "",
        *table(("recipe", "one to the other", "better", "as good", "worse"), wins),
    ]


def marks_line(found: Sequence[dict[str, Any]]) -> list[str]:
    """How much of their pairs the arms of RRPO mark."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in found):
        rows = [row for row in found if row["arm"] == arm]
        mean = {name: statistics.fmean(row[name] for row in rows) for name in ("chosen", "rejected", "changed", "pairs")}
        edited = f"; its edit changed {mean['changed']:.0f} of {mean['pairs']:.0f} pairs" if mean["changed"] else ""
        lines.append(
            f"- {arm}: {100 * mean['chosen']:.0f} % of the text of the winners and {100 * mean['rejected']:.0f} % of that of the "
            f"losers is marked{edited}."
        )
    return ["What RRPO marks:", "", *lines] if lines else []
