"""The report of a run: one self-contained HTML page made from the run folder, and a table for the console.

    run folder ─ summary.json, config.yaml ─┐
               ─ rounds/*/train metrics ────┼─ view (plain dict) ─ templates/report.html ─ report/index.html
               ─ responses, pairs, eval ────┘

A part that the run does not have (no evaluation data, training not run) is said to be missing, with the reason; no figure
is made up for it. Examples on the page are drawn at random with the run's seed, never picked.
"""

from __future__ import annotations

import json
import math
import pathlib
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jinja2
import numpy as np

from pipelines import report_plots
from pipelines.report_examples import Thumbnails, answer_changes, drawn_pairs
from vidalign.config.loading import dump_config
from vidalign.config.recipes import HoundRecipe, LeanpoRecipe, RecipeConfig, RrpoRecipe
from vidalign.config.run import RunConfig, TrainConfig
from vidalign.errors import DataError
from vidalign.files import RunFolder, read_json, read_jsonl, read_table, write_bytes_atomic
from vidalign.statistics import wilson_interval
from vidalign.types import EvalAnswer, PreferencePair, QuarantineRow, Record

NUM_QUARANTINE_ROWS = 40
MAX_CHARACTERS = 3000  # of one text on the page
MODEL_IDS = ("base", "aligned", "blind")
SUMMARY_PARTS = {
    "videos": ("total", "decoded", "quarantined"),
    "pairs": ("kept", "dropped"),
    "policy": ("base", "aligned"),
    "endpoint": ("model_ids",),
}
RecordT = TypeVar("RecordT", bound=Record)
Metrics = list[dict[str, Any]]


def write_report(run: RunFolder, config: RunConfig) -> pathlib.Path:
    """Write `report/index.html` from what the run folder holds and return its path.

    Raises:
        DataError: the folder holds neither a summary nor a finished round, or a file in it is damaged.
    """
    rounds = _rounds(run)
    if not run.summary.is_file() and not rounds:
        raise DataError(f"{run.root} has nothing to report: no summary.json and no rounds/; run `vidalign align` first")
    summary = read_json(run.summary) if run.summary.is_file() else {}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "number": number, "duration": duration, "clip": _clip}
    page = environment.get_template("report.html").render(view(run, config, summary, rounds))
    path = run.report / "index.html"
    write_bytes_atomic(path, page.encode("utf-8", "replace"))
    return path


def view(run: RunFolder, config: RunConfig, summary: Mapping[str, Any], rounds: Sequence[int]) -> dict[str, Any]:
    """Everything the template shows, as plain values. Pairs and answers are those of the last round that has any."""
    last = rounds[-1] if rounds else 0
    metrics = {index: _read_metrics(run.stage("train", index) / "metrics.jsonl") for index in rounds}
    pairs = _read(run.stage("pairs", last) / "pairs.parquet", PreferencePair)
    answers = {name: _read(run.stage("eval", last) / f"{name}.parquet", EvalAnswer) for name in MODEL_IDS}
    quarantine = [row for i in rounds for row in _read(run.stage("quarantine", i) / "quarantine.parquet", QuarantineRow)]
    quarantine = list({(row.uri, row.reason): row for row in quarantine}.values())  # one video fails in every round
    draw = random.Random(config.seed)
    with Thumbnails(run, last, config.video) as strip:
        changes = answer_changes(answers, strip, draw)
        pair_views = drawn_pairs(pairs, strip, draw)
    return {
        "name": run.root.name,
        "folder": str(run.root),
        "has_summary": bool(summary),
        "config": config,
        "config_yaml": dump_config(config),
        "recipe_line": recipe_line(config.recipe),
        **{part: _filled(summary.get(part), names) for part, names in SUMMARY_PARTS.items()},
        "likelihood": likelihood_view(summary.get("log_likelihood")),
        "correlation": summary.get("reward_trust_correlation"),
        "versions": summary.get("versions") or {},
        "seed": summary.get("seed", config.seed),
        "stages": _stages(summary.get("wall_s") or {}),
        "accuracy": accuracy_view(summary.get("accuracy")),
        "changes": changes,
        "curves": [(i, curve_plots(rows, i, _num_monitored(run, i, config.train))) for i, rows in metrics.items() if rows],
        "candidates": candidate_plots(run.stage("responses", last) / "responses.parquet"),
        "pair_plots": pair_plots(pairs),
        "lint": read_json(lint) if (lint := run.stage("pairs", last) / "lint.json").is_file() else None,
        "judge": summary.get("judge"),
        "drawn_pairs": pair_views,
        "num_pairs": len(pairs),
        "quarantine": quarantine[:NUM_QUARANTINE_ROWS],
        "num_quarantined": len(quarantine),
        "last_round": last,
    }


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
    return "\n".join([*lines, *(["95 % intervals: " + ", ".join(known)] if known else [])])


def accuracy_view(accuracy: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Rows "all" and one a category; None without an evaluation. Intervals by category are Wilson's, from share and n."""
    if not accuracy or not accuracy.get("num_examples"):
        return None
    rows = [_accuracy_row("all", accuracy, accuracy.get("intervals"))]
    for name, part in sorted((accuracy.get("by_category") or {}).items()):
        rows.append(_accuracy_row(name or "(no category)", part, None))
    return {"rows": rows, "n": accuracy["num_examples"]}


def _accuracy_row(name: str, part: Mapping[str, Any], intervals: Mapping[str, Any] | None) -> dict[str, Any]:
    n = part.get("num_examples") or 0
    shares = {model: part.get(model) for model in MODEL_IDS}
    if intervals is None:
        intervals = {model: wilson_interval(round(s * n), n) for model, s in shares.items() if s is not None and n}
    base, aligned = shares["base"], shares["aligned"]
    change = None if base is None or aligned is None else aligned - base
    known = {model: tuple(bounds) for model, bounds in intervals.items() if model in MODEL_IDS and bounds}
    return {"name": name, "n": n, **shares, "change": change, "intervals": known}


def likelihood_view(part: Mapping[str, Any] | None) -> dict[str, Any]:
    """Start and end of each side that was logged, and the share of pairs where both sides fell (None: not trained)."""
    part = part or {}
    sides = {name: _filled(part.get(name), ("start", "end")) for name in ("chosen", "rejected", "truth")}
    sides = {name: ends for name, ends in sides.items() if None not in ends.values()}
    return {"sides": sides, "both_fell": part.get("both_fell")}


def _filled(part: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    return {name: (part or {}).get(name) for name in names}


def curve_plots(rows: Metrics, round_index: int, monitored: str) -> list[report_plots.Plot]:
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
    plots = [
        report_plots.curves(title, note, points, labels=labels, scope=str(round_index), **options)
        for title, note, points, labels, options in figures
    ]
    return [plot for plot in plots if plot is not None]


def _num_monitored(run: RunFolder, index: int, train: TrainConfig) -> str:
    import pyarrow.parquet as pq

    path = run.stage("pairs", index) / "pairs.parquet"
    if not path.is_file():
        return "monitored pairs"
    return f"{min(pq.read_metadata(path).num_rows, train.num_monitored):,} training pairs"


def candidate_plots(path: pathlib.Path) -> list[report_plots.Plot]:
    """Reward and trust of all candidates by side. Reads three columns: texts and tokens stay on disk."""
    import pyarrow.parquet as pq

    if not path.is_file() or not {"kind", "reward", "trust"} <= set(pq.read_schema(path).names):
        return []
    table = pq.read_table(path, columns=["kind", "reward", "trust"])
    kind = np.array(table["kind"].to_pylist())
    reward, trust = (np.array(table[name].to_pylist(), dtype=float) for name in ("reward", "trust"))
    sides = {
        "chosen": np.isin(kind, ("hinted", "reflected")),
        "rejected": np.isin(kind, ("augmented", "perturbed")),
        "aligned": kind == "plain",
        "truth": np.isin(kind, ("truth", "rewritten")),
    }
    labels = {
        "chosen": "with hints or reflection",
        "rejected": "perturbed video" if "perturbed" in kind else "augmented video",
        "aligned": "no hint, clean video",
        "truth": "ground truth and its rewrites",
    }
    plots = [
        report_plots.histogram(
            "Reward of candidates",
            "candidates per bin",
            {name: reward[mask] for name, mask in sides.items()},
            xlabel="nats per token",
            labels=labels,
        ),
        report_plots.histogram(
            "Trust of candidates",
            "candidates per bin",
            {name: trust[mask] for name, mask in sides.items()},
            xlabel="trust, 0 to 1",
            labels=labels,
            limits=(0, 1),
        ),
        report_plots.medians_by_trust("Reward by trust", "nats per token, in tenths of trust", trust, reward),
    ]
    return [plot for plot in plots if plot is not None]


def pair_plots(pairs: Sequence[PreferencePair]) -> list[report_plots.Plot]:
    """Reward, trust and reward gap of the pairs that training saw."""
    if not pairs:
        return []
    reward = {side: np.array([getattr(pair, f"{side}_reward") for pair in pairs], float) for side in ("chosen", "rejected")}
    trust = {side: np.array([getattr(pair, f"{side}_trust") for pair in pairs], float) for side in ("chosen", "rejected")}
    gap = {"accent": reward["chosen"] - reward["rejected"]}
    plots = [
        report_plots.histogram("Reward in pairs", "pairs per bin", reward, xlabel="nats per token"),
        report_plots.histogram("Trust in pairs", "pairs per bin", trust, xlabel="trust, 0 to 1", limits=(0, 1)),
        report_plots.histogram(
            "Reward gap",
            "pairs per bin",
            gap,
            xlabel="chosen minus rejected, nats per token",
            labels={"accent": "gap"},
            zero=True,
        ),
    ]
    return [plot for plot in plots if plot is not None]


def recipe_line(recipe: RecipeConfig) -> str:
    """What made the pairs, in a line."""
    match recipe:
        case LeanpoRecipe():
            hints = "" if recipe.hints else ", no hints"
            said = f"{recipe.num_turns} turns{hints}, {recipe.negatives} negatives, {recipe.pair_rule}"
        case RrpoRecipe():
            said = f"wrong by {recipe.wrong_by}, rewrite by {recipe.rewrite}"
        case HoundRecipe():
            said = f"judge {recipe.judge.model}, threshold {recipe.threshold:g}, captions from {recipe.captions}"
        case _:
            return f"{recipe.name}: pairs from the data"
    return f"{recipe.name}: {recipe.num_candidates} candidates, {said}"


def _stages(wall_s: Mapping[str, float | None]) -> list[tuple[str, float, float]]:
    """(name, seconds, share of the longest)"""
    known = [(name, float(seconds)) for name, seconds in wall_s.items() if seconds is not None and name != "total"]
    longest = max((seconds for _, seconds in known), default=0.0)
    return [(name, seconds, seconds / longest if longest else 0.0) for name, seconds in known]


def _rounds(run: RunFolder) -> list[int]:
    folder = run.root / "rounds"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def _read(path: pathlib.Path, record: type[RecordT]) -> list[RecordT]:
    return read_table(path, record) if path.is_file() else []


def _read_metrics(path: pathlib.Path) -> Metrics:
    """Rows by step. A resumed training logs some steps again: the last record of a step counts."""
    if not path.is_file():
        return []
    try:
        rows = {row["step"]: row for row in read_jsonl(path)}
    except json.JSONDecodeError as error:
        raise DataError(f"{path} has a line that is not JSON ({error}); train again to write it anew") from error
    return [rows[step] for step in sorted(rows)]


def _clip(text: str) -> str:
    cut = len(text) - MAX_CHARACTERS
    return text if cut <= 0 else f"{text[:MAX_CHARACTERS]} … ({cut:,} more characters)"


def percent(share: float | None) -> str:
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def points(share: float | None) -> str:
    """A difference of shares in percentage points."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:+.1f} pt".replace("-", "−")


def number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
