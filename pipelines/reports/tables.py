"""The report's tables and how it writes numbers: plain values in, rows and texts out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from vidalign.statistics import wilson_interval
from vidalign.types import MODEL_IDS


def summary_table(summary: Mapping[str, Any]) -> str:
    """Base against aligned in plain text, overall and by category, for the console."""
    table = accuracy_view(summary.get("accuracy"))
    if table is None:
        return "No accuracy: the run was not evaluated (data.eval names the held-out questions)."
    width = max(len("accuracy"), *(len(row["name"]) for row in table["rows"]))
    lines = [f"{'accuracy':<{width}}  {'n':>6}  {'base':>7}  {'aligned':>7}  {'change':>9}  {'blind':>7}"]
    lines.append("-" * len(lines[0]))
    for row in table["rows"]:
        shares = {name: percent(row[name]) for name in MODEL_IDS}
        lines.append(
            f"{row['name']:<{width}}  {row['n']:>6,}  {shares['base']:>7}  {shares['aligned']:>7}  "
            f"{points(row['change']):>9}  {shares['blind']:>7}"
        )
    intervals = table["rows"][0]["intervals"]
    known = [f"{name} {100 * low:.1f} to {100 * high:.1f} %" for name, (low, high) in intervals.items()]
    return "\n".join([*lines, *(["95 % intervals: " + ", ".join(known)] if known else []), *scoring_lines(table)])


def scoring_lines(table: Mapping[str, Any]) -> list[str]:
    """Who scored the answers and how many nobody could score, in sentences."""
    lines = []
    for row in table["scoring"]:
        counts = ", ".join(f"{name} {row['counts'][name]:,}" for name in MODEL_IDS if name in row["counts"])
        lines.append(f"{row['kind']} answers scored by {row['scorer']}: {counts}")
    if any(table["unscored"].values()):
        counts = ", ".join(f"{name} {count:,} of {table['n']:,}" for name, count in table["unscored"].items())
        lines.append(f"in no accuracy, because nothing could tell whether they are right: {counts}")
    overlaps = [f"{name} {row['mean']:.2f}" for name, row in table["f1"].items() if row.get("mean") is not None]
    if overlaps:
        lines.append("overlap with short and free ground truths (token F1, no judge): " + ", ".join(overlaps))
    return [*lines, *figure_lines(table["figures"])]


def figure_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The figures of the scorer as a table in plain text; none without figures."""
    if not rows:
        return []
    width = max(len("figure"), *(len(row["name"]) for row in rows))
    shown = [name for name in MODEL_IDS if any(row["numbers"][name] is not None for row in rows)]
    lines = [f"{'figure':<{width}}" + "".join(f"  {name:>8}" for name in shown)]
    for row in rows:
        lines.append(f"{row['name']:<{width}}" + "".join(f"  {figure(row['numbers'][name]):>8}" for name in shown))
    return lines


def accuracy_view(accuracy: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Rows "all" and one a category; None without an evaluation. Intervals by category are Wilson's, from share and n."""
    if not accuracy or not accuracy.get("num_examples"):
        return None
    rows = [_accuracy_row("all", accuracy, accuracy.get("intervals"))]
    for name, part in sorted((accuracy.get("by_category") or {}).items()):
        rows.append(_accuracy_row(name or "(no category)", part, None))
    return {
        "rows": rows,
        "n": accuracy["num_examples"],
        "f1": accuracy.get("f1") or {},
        "judge": accuracy.get("judge"),
        "figures": _figures(accuracy.get("figures") or {}),
        **_scoring(accuracy.get("scored_by") or {}),
    }


def _figures(found: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rows {name, numbers by model} of {model: {name: value}}."""
    names = dict.fromkeys(name for figures in found.values() for name in figures)
    return [{"name": name, "numbers": {model: found.get(model, {}).get(name) for model in MODEL_IDS}} for name in names]


def _scoring(scored_by: Mapping[str, Mapping[str, Mapping[str, int]]]) -> dict[str, Any]:
    """Rows {kind, scorer, counts by model}, and by model how many answers nobody could score, from {model: {kind: {scorer: n}}}."""
    kinds = dict.fromkeys(
        (kind, scorer) for table in scored_by.values() for kind, counts in table.items() for scorer in counts
    )
    rows = [
        {
            "kind": kind,
            "scorer": scorer,
            "counts": {name: table[kind][scorer] for name, table in scored_by.items() if scorer in table.get(kind, {})},
        }
        for kind, scorer in sorted(kinds)
        if kind and scorer
    ]
    unscored = {name: sum(counts.get("", 0) for counts in table.values()) for name, table in scored_by.items()}
    return {"scoring": rows, "unscored": unscored}


def _accuracy_row(name: str, part: Mapping[str, Any], intervals: Mapping[str, Any] | None) -> dict[str, Any]:
    n = part.get("num_examples") or 0
    shares = {model: part.get(model) for model in MODEL_IDS}
    scored = {model: (part.get("scored") or {}).get(model, n) for model in MODEL_IDS}
    if intervals is None:
        counts = {model: scored[model] for model, share in shares.items() if share is not None and scored[model]}
        intervals = {model: wilson_interval(round(shares[model] * count), count) for model, count in counts.items()}
    base, aligned = shares["base"], shares["aligned"]
    change = None if base is None or aligned is None else aligned - base
    known = {model: tuple(bounds) for model, bounds in intervals.items() if model in MODEL_IDS and bounds}
    return {"name": name, "n": n, "scored": scored, **shares, "change": change, "intervals": known}


def likelihood_view(part: Mapping[str, Any] | None) -> dict[str, Any]:
    """Start and end of each side that was logged, and the share of pairs where both sides fell (None: not trained)."""
    part = part or {}
    sides = {name: filled(part.get(name), ("start", "end")) for name in ("chosen", "rejected", "truth")}
    sides = {name: ends for name, ends in sides.items() if None not in ends.values()}
    return {"sides": sides, "both_fell": part.get("both_fell")}


def filled(part: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    """The named entries, None for those that are not there."""
    return {name: (part or {}).get(name) for name in names}


def percent(share: float | None) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def points(share: float | None) -> str:
    """A difference of shares in percentage points."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:+.1f} pt".replace("-", "−")


def number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}".replace("-", "−")


def figure(value: float | None) -> str:
    """A figure of a scorer, which may be a share or a count."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
