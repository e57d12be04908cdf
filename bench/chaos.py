"""Faults in a small run, one at a time, and what is left of it: nothing lost, nothing doubled, no hang, no leftovers.

    vidalign bench chaos [--faults driver generator …] [--seed 0]

    undisturbed   rollout ─► train ─► evaluate
    each fault    a copy of it up to one command ─► that command, hit at a random moment ─► again, if it ended ─► compared

Every command is a process of its own with a Ray of its own. bench/chaos_faults.py lists the faults, bench/chaos_compare.py compares.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import psutil

from bench.chaos_compare import OTHER_RANKS_TOLERANCE, WEIGHTS_TOLERANCE, differences
from bench.chaos_faults import (
    COMMANDS,
    DISKS,
    DRIVER,
    FAULTS,
    NODE,
    POLL_S,
    Descendants,
    Fault,
    Hit,
    can_mount,
    failing_disk,
    gone,
    hit_at_random,
    torn,
)
from bench.chaos_nodes import two_nodes
from bench.chaos_page import page
from bench.pages import RELIABILITY, add_arguments, publish
from serving.proxy import free_port
from vidalign import files

DEADLINE_S = 300.0  # for each command
ENDS_WITHIN_S = 20.0  # processes, after their command
MADE = {  # by a command and those after it
    "rollout": ("rounds", "frames", "cache", "summary.json", "wall_s.json", "lease", ".folder-id", "config.yaml"),
    "train": ("train", "model", "reference", "cache", "eval", "scores"),
    "evaluate": ("eval", "scores"),
}
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


def _own(command: str) -> list[str]:
    """Overrides of one command alone: a port that is free."""
    return [f"serve.port={free_port()}"] if command == "evaluate" else []


class Command:
    """`vidalign COMMAND` on a run folder, with what it says kept in a file."""

    def __init__(self, name: str, config: pathlib.Path, run: pathlib.Path, overrides: Sequence[str] = ()) -> None:
        handle, path = tempfile.mkstemp(prefix="chaos-")
        self._said = pathlib.Path(path)
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", name, str(config), f"run_dir={run}", *overrides, *_own(name)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=handle,
            env={**os.environ, "RAY_worker_niceness": "0"},
            start_new_session=True,
        )
        os.close(handle)
        self.started = Descendants(psutil.Process(self.process.pid))
        atexit.register(self.end)

    def end(self) -> None:
        """End it and all that it started, by force."""
        self.started.look()
        self.process.kill()
        self.started.end()
        atexit.unregister(self.end)

    def wait(self, fault: Fault | None = None, hit: Hit | None = None) -> dict[str, Any]:
        """How it ended: {exit_code: None for a hang, seconds, said: its last line, traceback, left: processes}.

        replaced: whether another of the kind that was hit appeared afterwards.
        """
        hung = replaced = False
        watched = ""
        if fault is not None and hit is not None and fault.victim not in (DRIVER, NODE) and not fault.two_nodes:
            watched = fault.victim
        while self.process.poll() is None:
            if not watched or replaced:
                self.started.look()
            elif hit is not None:
                replaced = bool({process.pid for process in self.started.named(watched)} - hit.like)
            if time.monotonic() - self._began > DEADLINE_S:
                hung = True
                self.process.kill()
            time.sleep(POLL_S)
        seconds = time.monotonic() - self._began
        left = self.started.left(ENDS_WITHIN_S)
        self.end()
        text = self._said.read_text(encoding="utf-8", errors="replace")
        self._said.unlink()
        lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
        return {
            "exit_code": None if hung else self.process.returncode,
            "seconds": round(seconds, 1),
            "said": lines[-1].strip()[:400] if lines else "",
            "traceback": "Traceback (most recent call last)" in text,
            "notes": [line.strip()[:300] for line in lines if line.startswith(("note:", "warning:"))],
            "left": left,
            **({"replaced": replaced} if watched else {}),
        }


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


def suffer(fault: Fault, config: pathlib.Path, base: pathlib.Path, run: pathlib.Path, draw: random.Random) -> dict[str, Any]:
    """Let one fault happen, and run the same command again where it ended. Returns the row of the table.

    `hit_s` is None where the fault did not strike: the command was over, or needed nothing of what was broken.
    """
    within_s = fault.within_s
    for _ in range(3):
        shutil.rmtree(run, ignore_errors=True)
        copy_up_to(fault.command, base, run)
        row = _suffer_once(fault, config, run, draw, within_s)
        if row is not None:
            tolerance = OTHER_RANKS_TOLERANCE if fault.num_ranks_change else WEIGHTS_TOLERANCE
            found = differences(files_of(base, fault.command), run, weights_tolerance=tolerance)[:10]
            if (fault.place and row["first"]["exit_code"] == 0 and not found) or (fault.then and not row["then"]):
                row["hit_s"] = None
            return {**row, "differences": found}
        within_s /= 2  # the command was faster
    return {"fault": fault.name, "command": fault.command, "hit_s": None}


def _suffer_once(
    fault: Fault, config: pathlib.Path, run: pathlib.Path, draw: random.Random, within_s: float
) -> dict[str, Any] | None:
    with contextlib.ExitStack() as stack:
        mend = stack.enter_context(_broken(fault, run, config.parent))
        overrides, then_overrides, node, nodes = list(fault.overrides), fault.then_overrides, None, None
        if fault.two_nodes:
            address, node, nodes = stack.enter_context(two_nodes())
            overrides.append(f"cluster.address={address}")
        command = Command(fault.command, config, run, overrides)
        hit = Hit(seconds=0.0, line="", like=frozenset())
        if not fault.place:
            seen, before = nodes or command.started, progress_of(run, fault.command)
            struck = hit_at_random(
                fault, command.process, seen, draw, within_s, node, lambda: progress_of(run, fault.command) != before
            )
            if struck is None:
                ended = command.wait()
                if ended["exit_code"] != 0:
                    raise SystemExit(f"`vidalign {fault.command}` failed before it was hit: {ended}")
                return None
            hit = struck
        done = progress_of(run, fault.command)
        row: dict[str, Any] = {"fault": fault.name, "command": fault.command}
        row |= {"hit_s": round(hit.seconds, 1), "hit": hit.line, "done": done}
        if fault.twice:
            row["second"] = Command(fault.command, config, run, overrides).wait()
            if row["second"]["exit_code"] == 0 and command.process.poll() is not None:  # it found nobody there
                command.wait()
                return None
        row["first"] = command.wait(fault, hit)
        mend()
        row["then"] = fault.then if fault.then and torn(run, fault.then) else ""
        again = overrides if then_overrides is None else then_overrides
        row["again"] = Command(fault.command, config, run, again).wait() if row["first"]["exit_code"] != 0 else None
    return row


def _broken(fault: Fault, run: pathlib.Path, folder: pathlib.Path) -> Any:
    """A block in which the fault's place fails, until the function that it yields is called."""
    if fault.place in DISKS:
        return failing_disk(run, fault.place, fault.room_bytes)
    if fault.place:
        return gone(folder / {"videos": "data/videos", "model": "model"}[fault.place])
    return contextlib.nullcontext(lambda: None)


def progress_of(run: pathlib.Path, command: str) -> str:
    """How far a command is: optimizer steps, or what is written of the others' results."""
    if command == "train":
        steps = list(run.glob("rounds/*/train/metrics.jsonl"))
        return f"{sum(len(path.read_bytes().splitlines()) for path in steps)} measurements"
    pattern = {"rollout": "rounds/*/responses/parts/*.json", "evaluate": "rounds/*/eval/**/*"}[command]
    return f"{sum(path.is_file() for path in run.glob(pattern))} files"


def files_of(base: pathlib.Path, command: str) -> pathlib.Path:
    """The undisturbed run as it was after a command, beside it."""
    after = COMMANDS[COMMANDS.index(command) + 1 :]
    path = base.with_name(f"after-{command}")
    if not path.is_dir():
        copy_up_to(after[0], base, path) if after else shutil.copytree(base, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="+", metavar="NAME", help="only those with such a text in `NAME, COMMAND`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin with no further fault after so many")
    parser.add_argument(
        "--folder", type=pathlib.Path, help="keep what is made here, and go on with what is missing of the table"
    )
    parser.add_argument("--anew", action="store_true", help="let those of --faults happen again that the table has")
    add_arguments(parser, quick=f"{len(QUICK)} faults")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no command is left running
    wanted = arguments.faults or (QUICK if arguments.quick else [""])
    chosen = [f for f in FAULTS if any(text in str(f) for text in wanted)]
    if not can_mount():
        chosen = [fault for fault in chosen if fault.place not in DISKS]
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        base, config = folder / "undisturbed", folder / "align.json"
        if not config.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            make_config(folder)
        last = max((fault.command for fault in chosen), key=COMMANDS.index, default=COMMANDS[0])
        seconds = undisturbed(config, base, last, folder / "seconds.json")
        kept = folder / "rows.json"
        rows: dict[str, Any] = files.read_json(kept) if kept.is_file() else {}
        for fault in chosen:
            if (str(fault) in rows and not arguments.anew) or time.monotonic() - began > arguments.minutes * 60:
                continue
            draw = random.Random(f"{arguments.seed} {fault}")
            rows[str(fault)] = suffer(fault, config, base, folder / "run", draw)
            files.write_json(kept, rows)
            print(rows[str(fault)], flush=True)
        inside = [rows[str(fault)] for fault in FAULTS if str(fault) in rows]
        found = {"seed": arguments.seed, "load": round(os.getloadavg()[1], 1), "undisturbed_s": seconds, "rows": inside}
    publish(arguments, RELIABILITY, "chaos", found, page(found))


if __name__ == "__main__":
    main()
