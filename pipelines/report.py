"""The report of a run: one self-contained HTML page made from the run folder, and a table for the console.

    run folder ─ summary.json, config.yaml ─┐
               ─ rounds/*/train metrics ────┼─ view (plain dict) ─ templates/report.html ─ report/index.html
               ─ responses, pairs, eval ────┴─ all of their rows  ─ reports/browse.py    ─ report/browse.html, report/rows/

A part that the run does not have (no evaluation data, training not run) is said to be missing, with the reason; no figure
is made up for it. Examples on the page are drawn at random with the run's seed, never picked.
"""

from __future__ import annotations

import functools
import json
import pathlib
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jinja2

from pipelines.reports.browse import write_browser
from pipelines.reports.examples import Thumbnails, answer_changes, drawn_pairs
from pipelines.reports.figures import Metrics, candidate_plots, curve_plots, pair_plots
from pipelines.reports.groups import drawn_groups
from pipelines.reports.tables import accuracy_view, duration, figure, filled, likelihood_view, number, percent, points
from pipelines.suites import tables as suites
from pipelines.summary import scored_answers
from vidalign import recipes
from vidalign.config.loading import dump_config
from vidalign.config.rounds import at, variants
from vidalign.config.run import RunConfig
from vidalign.config.training import TrainConfig
from vidalign.data.source import GROUPS_FILE
from vidalign.errors import DataError
from vidalign.files import RunFolder, read_json, read_jsonl, read_table, write_bytes_atomic
from vidalign.records import Record
from vidalign.types import PreferencePair, QuarantineRow, ResponseGroup

NUM_QUARANTINE_ROWS = 40
MAX_CHARACTERS = 3000  # of one text on the page
SUMMARY_PARTS = {
    "videos": ("total", "decoded", "quarantined"),
    "pairs": ("kept", "dropped"),
    "groups": (
        "kept",
        "dropped",
        "all_alike",
        "replies",
        "left_out",
        "mean_reward",
        "mean_parts",
        "mean_reward_by_round",
        "behaviour_gap",
    ),
    "policy": ("base", "aligned"),
    "endpoint": ("model_ids",),
}
RecordT = TypeVar("RecordT", bound=Record)


def write_report(run: RunFolder, config: RunConfig) -> pathlib.Path:
    """Write `report/index.html` from what the run folder holds and return its path.

    Raises:
        DataError: the folder holds neither a summary nor a finished round, or a file in it is damaged.
    """
    rounds = _rounds(run)
    if not run.summary.is_file() and not rounds:
        raise DataError(f"{run} has nothing to report: no summary.json and no rounds/; run `vidalign align` first")
    summary = read_json(run.summary) if run.summary.is_file() else {}
    environment = _environment()
    browsed = write_browser(
        run,
        environment,
        pairs={index: _read(run.stage("pairs", index) / "pairs.parquet", PreferencePair) for index in rounds},
        groups={index: _read(run.stage("pairs", index) / GROUPS_FILE, ResponseGroup) for index in rounds},
        answers=scored_answers(run, rounds[-1] if rounds else 0),
    )
    page = environment.get_template("report.html").render({**view(run, config, summary, rounds), "browsed": browsed})
    path = run.report / "index.html"
    write_bytes_atomic(path, page.encode("utf-8", "replace"))
    return path


@functools.cache
def _environment() -> jinja2.Environment:
    """With which all pages of a process are written: a template is compiled once."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "number": number,
        "figure": figure,
        "duration": duration,
        "clip": _clip,
    }
    return environment


def view(run: RunFolder, config: RunConfig, summary: Mapping[str, Any], rounds: Sequence[int]) -> dict[str, Any]:
    """Everything the template shows, as plain values. Pairs and answers are those of the last round that has any."""
    last = rounds[-1] if rounds else 0
    metrics = {index: read_metrics(run.stage("train", index) / "metrics.jsonl") for index in rounds}
    pairs = _read(run.stage("pairs", last) / "pairs.parquet", PreferencePair)
    groups = _read(run.stage("pairs", last) / GROUPS_FILE, ResponseGroup)
    answers = scored_answers(run, last)
    quarantine = [row for i in rounds for row in _read(run.stage("quarantine", i) / "quarantine.parquet", QuarantineRow)]
    quarantine = list({(row.uri, row.reason): row for row in quarantine}.values())  # one video fails in every round
    draw = random.Random(config.seed)
    recipe = recipes.build(at(config, last).recipe)
    with Thumbnails(run, last, config.video) as strip:
        changes = answer_changes(answers, strip, draw)
        pair_views = drawn_pairs(pairs, strip, draw)
        group_views = drawn_groups(groups, strip, draw)
    return {
        "name": run.name,
        "folder": str(run.root),
        "has_summary": bool(summary),
        "config": config,
        "config_yaml": dump_config(config),
        "recipe_line": recipe_line(config),
        **{part: filled(summary.get(part), names) for part, names in SUMMARY_PARTS.items()},
        "likelihood": likelihood_view(summary.get("log_likelihood")),
        "correlation": summary.get("reward_trust_correlation"),
        "versions": summary.get("versions") or {},
        "seed": summary.get("seed", config.seed),
        "stages": _stages(summary.get("wall_s") or {}),
        "accuracy": accuracy_view(summary.get("accuracy")),
        "suites": suites.views([run.stage("suites", index) for index in rounds]),
        "changes": changes,
        "curves": [
            (i, curve_plots(rows, i, _num_monitored(run, i, at(config, i).train))) for i, rows in metrics.items() if rows
        ],
        "candidates": candidate_plots(run.stage("responses", last) / "responses.parquet", recipe.kinds),
        "pair_plots": pair_plots(pairs),
        "lint": read_json(lint) if (lint := run.stage("pairs", last) / "lint.json").is_file() else None,
        "judge": summary.get("judge"),
        "drawn_pairs": pair_views,
        "num_pairs": len(pairs),
        "makes": recipe.makes,
        "drawn_groups": group_views,
        "num_groups": len(groups),
        "quarantine": quarantine[:NUM_QUARANTINE_ROWS],
        "num_quarantined": len(quarantine),
        "last_round": last,
    }


def _num_monitored(run: RunFolder, index: int, train: TrainConfig) -> str:
    import pyarrow.parquet as pq

    path = run.stage("pairs", index) / "pairs.parquet"
    if path.with_name(GROUPS_FILE).is_file():
        return f"best and worst reply of at most {train.num_monitored:,} groups"
    if not path.is_file():
        return "monitored pairs"
    return f"{min(pq.read_metadata(path).num_rows, train.num_monitored):,} training pairs"


def _stages(wall_s: Mapping[str, float | None]) -> list[tuple[str, float, float]]:
    """(name, seconds, share of the longest)"""
    known = [(name, float(seconds)) for name, seconds in wall_s.items() if seconds is not None and name != "total"]
    longest = max((seconds for _, seconds in known), default=0.0)
    return [(name, seconds, seconds / longest if longest else 0.0) for name, seconds in known]


def recipe_line(config: RunConfig) -> str:
    """The recipe of a run, or of each of its steps."""
    if not config.steps:
        return recipes.build(config.recipe).describe()
    said = [f"{recipes.build(each.recipe).describe()}, objective {each.objective.name}" for each in variants(config)]
    return "; then ".join(f"{step.repeat} x ({text})" for step, text in zip(config.steps, said, strict=True))


def _rounds(run: RunFolder) -> list[int]:
    folder = run.root / "rounds"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def _read(path: pathlib.Path, record: type[RecordT]) -> list[RecordT]:
    return read_table(path, record) if path.is_file() else []


def read_metrics(path: pathlib.Path) -> Metrics:
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
