"""Tables of means over seeds, as the pages of this folder print them."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bench.intervals import interval
from bench.quality.run import Job
from vidalign import files

Rows = list[dict[str, Any]]


def finished(root: pathlib.Path, arm: str, rate: float | None) -> Rows:
    """The held-out results of an arm at a learning rate, by seed."""
    if rate is None:
        return []
    paths = sorted(Job(arm, 0, rate).folder(root).parent.glob("*/result.json"), key=lambda path: int(path.parent.name))
    return [row for path in paths if (row := files.read_json(path))["split"] == "heldout"]


def runs_by_arm(found: dict[str, Any], arms: Iterable[str]) -> dict[str, Rows]:
    """The held-out results of each of these arms that has some among kept figures."""
    return {name: rows for name in arms if (rows := [row for row in found["runs"] if row["arm"] == name])}


def sweep_table(found: dict[str, Any]) -> list[str]:
    """The table of kept dev figures: of each method and learning rate those of every dev seed, in %, and the chosen rate."""
    rates = sorted({float(rate) for known in found["dev"].values() for rate in known})
    rows = []
    for name, known in found["dev"].items():
        said = [" / ".join(f"{100 * value:.1f}" for value in known.get(f"{rate:g}", ())) for rate in rates]
        rows.append([name, *said, f"{found['rates'][name]:g}"])
    return table(("method", *(f"{rate:g}" for rate in rates), "chosen"), rows)


def cell(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean and half of its 95 % interval."""
    mean, half = interval([scale * value for value in values])
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]


def column(rows: Rows, read: Callable[[dict[str, Any]], float], scale: float = 1.0, digits: int = 1) -> str:
    """The cell of what is read off each row."""
    return cell([read(row) for row in rows], scale, digits)


def at(*path: str) -> Callable[[dict[str, Any]], float]:
    """Reads what is at a path of names in a row."""

    def read(row: dict[str, Any]) -> float:
        found: Any = row
        for name in path:
            found = found[name]
        return float(found)

    return read


def change(side: str) -> Callable[[dict[str, Any]], float]:
    """Reads by how much the mean log-likelihood of a side changed from the first to the last step."""
    return lambda row: row["end"][f"{side}_logp"] - row["start"][f"{side}_logp"]


def rounded(value: Any) -> Any:
    """A result as it is kept: numbers to six digits, all else as it is."""
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
