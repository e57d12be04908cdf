"""Faults in a small run, one at a time, and what is left of it: nothing lost, nothing doubled, no hang, no leftovers.

    vidalign bench chaos [--faults driver generator …] [--seed 0]

    undisturbed   rollout ─► train ─► evaluate
    each fault    a copy of it up to one command ─► that command, hit at a random moment ─► again, if it ended ─► compared

Every command is a process of its own with a Ray of its own. bench/chaos_faults.py lists the faults, bench/chaos_compare.py compares.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from bench.chaos_command import Command
from bench.chaos_compare import OTHER_RANKS_TOLERANCE, WEIGHTS_TOLERANCE, begun_of, differences, found_nobody, progress_of
from bench.chaos_faults import COMMANDS, DISKS, FAULTS, Fault
from bench.chaos_network import can_cut
from bench.chaos_nodes import two_nodes
from bench.chaos_page import page
from bench.chaos_strikes import Hit, can_mount, failing_disk, gone, hit_at_random, torn
from bench.pages import RELIABILITY, Output, add_arguments, publish, this_commit
from vidalign import files

MADE = {  # by a command and those after it
    "rollout": ("rounds", "frames", "cache", "summary.json", "wall_s.json", "lease", ".folder-id", "config.yaml"),
    "train": ("train", "model", "reference", "cache", "eval", "scores"),
    "evaluate": ("eval", "scores"),
}
FOLDERS = re.compile(r"(?<![\w./~…])/(?:[\w.+-]+/)+")
QUICK = ("decoder, rollout", "generator, rollout")


def make_config(folder: pathlib.Path) -> pathlib.Path:
    """Data and the configuration of a small run that asks a reference, below `folder`."""
    from bench.built_in import MAX_NEW_TOKENS, make_run

    config = make_run(
        folder,
        {"train": 12, "probe": 2, "heldout": 4},
        recipe={"num_candidates": 2, "max_new_tokens": MAX_NEW_TOKENS},
        rollout={"batch_size": 4},
        objective={"name": "dpo"},
        train={
            "learning_rate": 1e-4,
            "batch_size": 2,
            "micro_batch_size": 2,
            "log_every": 1,
            "checkpoint_every": 1,
            "num_monitored": 2,
        },
        evaluate={"max_new_tokens": MAX_NEW_TOKENS, "blind": False},
        cluster={"address": "local", "wait_for_nodes_s": 60},
    )
    shutil.copytree(config["model"]["path"], folder / "model")  # a folder of its own, which may be gone
    config["model"]["path"] = str(folder / "model")
    config["data"]["eval"] = config["data"].pop("heldout")
    path = folder / "align.json"
    files.write_json(path, config)  # JSON is YAML
    return path


def undisturbed(config: pathlib.Path, run: pathlib.Path, last: str, known: pathlib.Path) -> dict[str, float]:
    """Run the commands up to the last one that is needed, without those in `known`, a JSON file of seconds, which it writes.

    Returns the seconds of each. Raises `SystemExit` where one fails.
    """
    seconds: dict[str, float] = files.read_json(known) if known.is_file() else {}
    for name in COMMANDS[: COMMANDS.index(last) + 1]:
        if name not in seconds:
            ended = Command(name, config, run).wait()
            if ended["exit_code"] != 0 or ended["left"]:
                raise SystemExit(f"the undisturbed `vidalign {name}` failed: {ended}")
            seconds[name] = ended["seconds"]
            files.write_json(known, seconds)
    return seconds


def copy_up_to(command: str, run: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a finished run as it was before a command."""
    last = COMMANDS.index(command)
    without = {name for later in COMMANDS[last:] for name in MADE[later]} if command != "rollout" else {*MADE["rollout"]}
    shutil.copytree(run, target, ignore=shutil.ignore_patterns(*without))


class Chain:
    """Faults of one command, one after another on the same run until a command finishes it; then that is compared.

    So most faults cost only the time up to their moment, and meet a run that others have disturbed already. Those with a
    configuration of their own have a run of their own.
    """

    def __init__(self, command: str, config: pathlib.Path, base: pathlib.Path, run: pathlib.Path) -> None:
        """`run`: where it is; beside it `{run}.json` holds the rows that are not compared yet, for a later call of this bench."""
        self._command, self._config, self._base, self._run = command, config, base, run
        self._kept = run.with_name(f"{run.name}.json")
        self._pending: list[dict[str, Any]] = files.read_json(self._kept) if self._kept.is_file() and run.is_dir() else []

    @property
    def waiting(self) -> list[str]:
        """The faults whose rows are not compared yet."""
        return [name_of(row) for row in self._pending]

    def not_compared(self) -> list[dict[str, Any]]:
        """Their rows, as far as they are known."""
        return [{**row, "again": None, "differences": ["not compared yet"]} for row in self._pending]

    def suffer(self, fault: Fault, draw: random.Random) -> list[dict[str, Any]]:
        """Let one fault happen. Returns the rows of the table that are complete now.

        `hit_s` is None where a fault did not strike: the command was over, or needed nothing of what was broken.
        """
        complete = self.finish() if fault.is_apart else []
        within_s = fault.within_s
        for _ in range(3):
            if not self._pending:
                shutil.rmtree(self._run, ignore_errors=True)
                copy_up_to(self._command, self._base, self._run)
            row, ended = _suffer_once(fault, self._config, self._run, draw, within_s)
            if row is None:  # the command was faster
                within_s /= 2
                complete += self._compared(ended)
                continue
            self._pending.append({**row, "commit": this_commit(), "load": round(os.getloadavg()[1], 1)})
            files.write_json(self._kept, self._pending)
            if row["first"]["exit_code"] == 0:
                return complete + self._compared(ended, fault)
            return complete + (self.finish(fault) if fault.is_apart else [])
        return [*complete, {"fault": fault.name, "command": fault.command, "hit_s": None}]

    def finish(self, fault: Fault | None = None) -> list[dict[str, Any]]:
        """Give the command once more, if it has not finished. Returns the rows that are complete now."""
        if not self._pending:
            return []
        overrides = () if fault is None else fault.overrides if fault.then_overrides is None else fault.then_overrides
        return self._compared(Command(self._command, self._config, self._run, overrides).wait(), fault)

    def _compared(self, ended: dict[str, Any], fault: Fault | None = None) -> list[dict[str, Any]]:
        """The rows since the last comparison, with what differs after the command that `ended`."""
        tolerance = OTHER_RANKS_TOLERANCE if fault is not None and fault.num_ranks_change else WEIGHTS_TOLERANCE
        rows, self._pending = self._pending, []
        files.write_json(self._kept, [])
        if not rows:
            return []
        found = differences(files_of(self._base, self._command), self._run, weights_tolerance=tolerance)[:10]
        for further, row in enumerate(reversed(rows)):
            row["again"] = ended if row["first"]["exit_code"] != 0 else None
            row |= {"further": further, "differences": found}
            if row["first"]["exit_code"] == 0 and row.pop("needs_failure") and not found:
                row["hit_s"] = None
        return rows


def name_of(row: Mapping[str, Any]) -> str:
    """The name of a row's fault, as `str` of the fault."""
    return f"{row['fault']}, {row['command']}"


def _suffer_once(
    fault: Fault, config: pathlib.Path, run: pathlib.Path, draw: random.Random, within_s: float
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The fault's row as far as it is known, None where the command was over before; and how the command ended."""
    with contextlib.ExitStack() as stack:
        mend = stack.enter_context(_broken(fault, run, config.parent))
        overrides = list(fault.overrides)
        nodes = stack.enter_context(two_nodes(apart=fault.cut_s > 0)) if fault.two_nodes else None
        if nodes is not None:
            overrides.append(f"cluster.address={nodes.address}")
        command = Command(fault.command, config, run, overrides)
        hit = Hit(seconds=0.0, line="", like=frozenset())
        if not fault.place:
            seen, before = nodes.started if nodes else command.started, begun_of(run, fault)
            struck = hit_at_random(
                fault, command.process, seen, draw, within_s, nodes, lambda: begun_of(run, fault) != before
            )
            if struck is None:
                ended = command.wait()
                if ended["exit_code"] != 0:
                    raise SystemExit(f"`vidalign {fault.command}` failed before it was hit: {ended}")
                return None, ended
            hit = struck
        done = progress_of(run, fault.command)
        row: dict[str, Any] = {"fault": fault.name, "command": fault.command}
        row |= {"hit_s": round(hit.seconds, 1), "hit": hit.line, "done": done, "needs_failure": bool(fault.place)}
        if fault.twice:
            row["second"] = Command(fault.command, config, run, overrides).wait()
            if found_nobody(row["second"], command.process.poll() is not None):
                return None, command.wait()
        row["first"] = command.wait(fault, hit)
        mend()
        row["then"] = fault.then if fault.then and torn(run, fault.then) else ""
        if fault.then and not row["then"]:
            row["hit_s"] = None
    return row, row["first"]


def _broken(fault: Fault, run: pathlib.Path, folder: pathlib.Path) -> Any:
    """A block in which the fault's place fails, until the function that it yields is called."""
    if fault.place in DISKS:
        return failing_disk(run, fault.place, fault.room_bytes)
    if fault.place:
        return gone(folder / {"videos": "data/videos", "model": "model"}[fault.place])
    return contextlib.nullcontext(lambda: None)


def files_of(base: pathlib.Path, command: str) -> pathlib.Path:
    """The undisturbed run as it was after a command, beside it."""
    after = COMMANDS[COMMANDS.index(command) + 1 :]
    path = base.with_name(f"after-{command}")
    if not path.is_dir():
        copy_up_to(after[0], base, path) if after else shutil.copytree(base, path)
    return path


def known_rows(out: Output) -> dict[str, Any]:
    """The rows that were published before, by the names of their faults, each with its commit."""
    commit = out.measured().get("chaos.md", {}).get("commit", "")
    return {name_of(row): {"commit": commit, **row} for row in (out.found("chaos") or {"rows": []})["rows"]}


def without_folders(value: Any) -> Any:
    """Rows of the table without the folders of the machine that they were made on: "…/align.json" for a whole path."""
    return json.loads(FOLDERS.sub("…/", json.dumps(value, ensure_ascii=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", metavar="NAME", help="only those with such a text in `NAME, COMMAND`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin with no further fault after so many")
    parser.add_argument("--folder", type=pathlib.Path, help="keep what is made here, for the next call to go on with")
    parser.add_argument("--anew", action="store_true", help="let those of --faults happen again that the table has")
    add_arguments(parser, quick=f"{len(QUICK)} faults")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no command is left running
    wanted = arguments.faults or (QUICK if arguments.quick else [""])
    chosen = [f for f in FAULTS if any(text in str(f) for text in wanted)]
    if not can_mount():
        chosen = [fault for fault in chosen if fault.place not in DISKS]
    if not can_cut():
        chosen = [fault for fault in chosen if not fault.cut_s]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        base, config = folder / "undisturbed", folder / "align.json"
        if not config.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            make_config(folder)
        kept = folder / "rows.json"
        rows: dict[str, Any] = known_rows(arguments.out or Output()) | (files.read_json(kept) if kept.is_file() else {})
        todo = [fault for fault in chosen if arguments.anew or str(fault) not in rows]
        last = max((fault.command for fault in todo), key=COMMANDS.index, default=COMMANDS[0])
        seconds = undisturbed(config, base, last, folder / "seconds.json")
        for command in COMMANDS:
            chain = Chain(command, config, base, folder / f"run-{command}")
            waiting = chain.waiting
            for fault in [*(each for each in todo if each.command == command and str(each) not in waiting), None]:
                if time.monotonic() - began > arguments.minutes * 60 and (fault or arguments.folder):
                    continue
                draw = random.Random(f"{arguments.seed} {fault}")
                for row in chain.finish() if fault is None else chain.suffer(fault, draw):
                    rows[name_of(row)] = row
                    print(row, flush=True)
                files.write_json(kept, rows)
            for row in chain.not_compared():
                rows[name_of(row)] = row
        inside = without_folders([rows[str(fault)] for fault in FAULTS if str(fault) in rows])
        found = {"seed": arguments.seed, "undisturbed_s": seconds, "rows": inside}
    publish(arguments, RELIABILITY, "chaos", found, page(found))


if __name__ == "__main__":
    main()
