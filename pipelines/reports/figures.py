"""Which figures a report has, from metrics, candidates and pairs; how they are drawn is in plots.py."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.reports import plots
from vidalign.recipes.kinds import KINDS, Kind, kind_of
from vidalign.types import PreferencePair

SIDE_STYLES = {"chosen": "chosen", "rejected": "rejected", "plain": "aligned", "truth": "truth"}  # side of a kind ─► style
Metrics = list[dict[str, Any]]


def curve_plots(rows: Metrics, round_index: int, monitored: str) -> list[plots.Plot]:
    """The training curves of one round; figures that the metrics do not hold are left out. `monitored`: of what, and n."""

    def series(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    likelihood = {name: series(f"{name}_logp") for name in ("chosen", "rejected", "truth")}
    change = {name: [(x, y - part[0][1]) for x, y in part] for name, part in likelihood.items() if part}
    shares = {"accent": series("accuracy"), "chosen": series("chosen_fell"), "rejected": series("both_fell")}
    truth = {"truth": "ground truth (probe)"}
    share_labels = {"accent": "chosen above rejected", "chosen": "chosen fell", "rejected": "both fell"}
    figures: list[tuple[str, str, Any, dict[str, str], dict[str, bool]]] = [
        ("Average log-likelihood", f"nats per token, {monitored}", likelihood, truth, {}),
        ("Change of log-likelihood", f"nats per token, since step {rows[0]['step']}", change, truth, {"zero": True}),
        (
            "Margin",
            "chosen minus rejected, nats per token",
            {"accent": series("margin")},
            {"accent": "margin"},
            {"zero": True},
        ),
        ("Share of pairs", monitored, shares, share_labels, {"share": True}),
        ("Loss", "mean of the steps since the last point", {"accent": series("loss")}, {"accent": "loss"}, {}),
        ("Gradient norm", "before clipping", {"accent": series("grad_norm")}, {"accent": "norm"}, {}),
    ]
    drawn = [
        plots.curves(title, note, points, labels=labels, scope=str(round_index), **options)
        for title, note, points, labels, options in figures
    ]
    return [plot for plot in drawn if plot is not None]


def candidate_plots(path: pathlib.Path, kinds: Mapping[str, Kind] = KINDS) -> list[plots.Plot]:
    """Reward and trust of all candidates by side. Reads three columns: texts and tokens stay on disk."""
    import pyarrow.parquet as pq

    if not path.is_file() or not {"kind", "reward", "trust"} <= set(pq.read_schema(path).names):
        return []
    table = pq.read_table(path, columns=["kind", "reward", "trust"])
    kind = np.array(table["kind"].to_pylist())
    reward, trust = (np.array(table[name].to_pylist(), dtype=float) for name in ("reward", "trust"))
    present = {name: kind_of(name, kinds) for name in dict.fromkeys(kind.tolist())}
    groups = {style: [name for name, of in present.items() if of.side == side] for side, style in SIDE_STYLES.items()}
    masks = {style: np.isin(kind, names) for style, names in groups.items()}
    labels = {style: " or ".join(present[name].label for name in names) for style, names in groups.items()}
    drawn = [
        plots.histogram(
            "Reward of candidates",
            "candidates per bin",
            {style: reward[mask] for style, mask in masks.items()},
            xlabel="nats per token",
            labels=labels,
        ),
        plots.histogram(
            "Trust of candidates",
            "candidates per bin",
            {style: trust[mask] for style, mask in masks.items()},
            xlabel="trust, 0 to 1",
            labels=labels,
            limits=(0, 1),
        ),
        plots.medians_by_trust("Reward by trust", "nats per token, in tenths of trust", trust, reward),
    ]
    return [plot for plot in drawn if plot is not None]


def pair_plots(pairs: Sequence[PreferencePair]) -> list[plots.Plot]:
    """Reward, trust and reward gap of the pairs that training saw."""
    if not pairs:
        return []
    reward = {side: np.array([getattr(pair, f"{side}_reward") for pair in pairs], float) for side in ("chosen", "rejected")}
    trust = {side: np.array([getattr(pair, f"{side}_trust") for pair in pairs], float) for side in ("chosen", "rejected")}
    gap = {"accent": reward["chosen"] - reward["rejected"]}
    drawn = [
        plots.histogram("Reward in pairs", "pairs per bin", reward, xlabel="nats per token"),
        plots.histogram("Trust in pairs", "pairs per bin", trust, xlabel="trust, 0 to 1", limits=(0, 1)),
        plots.histogram(
            "Reward gap",
            "pairs per bin",
            gap,
            xlabel="chosen minus rejected, nats per token",
            labels={"accent": "gap"},
            zero=True,
        ),
    ]
    return [plot for plot in drawn if plot is not None]
