"""Whole runs of `vidalign align` on the events task, as scripts of this folder make, continue and measure them."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from bench.quality.data import Data
from bench.quality.events_figures import measure
from vidalign import files
from vidalign.types import PreferencePair

STAGES = ("responses", "judgements", "pairs", "reference", "train")


def on_questions(
    raw: Mapping[str, Any], root: pathlib.Path, folder: pathlib.Path, questions: int, train: str = "train"
) -> dict[str, Any]:
    """A configuration on the first training questions of the bench's data, in a folder of its own, without an evaluation."""
    of = root.resolve() / "data"
    data = {"train": str(of / f"{train}.jsonl"), "probe": str(of / "probe.jsonl"), "limit": questions}
    kept = {name: section for name, section in raw.items() if name != "evaluate"}
    return kept | {"data": data, "run_dir": str(folder.resolve()), "cluster": {"address": "local"}}


def align(folder: pathlib.Path, raw: Mapping[str, Any], seconds: float) -> bool:
    """Run or continue the run of a folder; whether it is finished. Raises `SystemExit` where it failed."""
    if (folder / "summary.json").is_file():
        return True
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f"{folder.name}.yaml")
    path.write_text(yaml.safe_dump(dict(raw)), encoding="utf-8")
    command = [sys.executable, "-m", "vidalign", "align", str(path)]
    with (folder / "console.txt").open("a") as console:
        process = subprocess.Popen(command, stdout=console, stderr=console, env=os.environ | {"PYTHONPATH": os.getcwd()})
        try:
            code = process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            return False
    if code:
        raise SystemExit(f"the run of {folder} ended with {code}, see {folder / 'console.txt'}")
    return True


def measured(
    data: Data, run: pathlib.Path, index: int, names: Sequence[str], split: str = "heldout"
) -> dict[str, Any] | None:
    """The figures of the policy after a round of a run on a split, measured once; None while it is not trained."""
    ending = "" if split == "heldout" else f"-{split}"
    folder, kept = run / "rounds" / str(index), run.with_name(f"{run.name}-{index}{ending}.json")
    if not kept.is_file():
        if not (folder / "train" / "manifest.json").is_file():
            return None
        found = measure(data, str(folder / "model"), split)
        files.write_json(kept, {name: found[name] for name in names})
    return files.read_json(kept)


def round_facts(folder: pathlib.Path) -> dict[str, Any]:
    """What a round was made of, and the seconds of each of its stages."""
    made = {stage: files.read_json(path) for stage in STAGES if (path := folder / stage / "manifest.json").is_file()}
    pairs = made.get("pairs", {})
    return {
        "seconds": {stage: round(each["finished_at"] - each["started_at"], 1) for stage, each in made.items()},
        "kept": pairs.get("kept"),
        "dropped": pairs.get("dropped"),
        "groups": pairs.get("groups"),
        "verdicts": pairs.get("verdicts"),
        "kinds": kinds(folder / "pairs" / "pairs.parquet"),
    }


def kinds(path: pathlib.Path) -> dict[str, int] | None:
    """How many of a round's pairs are of each kind; None where it has no pairs."""
    if not path.is_file():
        return None
    rules = [json.loads(pair.provenance)["rule"] for pair in files.read_table(path, PreferencePair)]
    return {rule: rules.count(rule) for rule in sorted(set(rules))}
