"""Two run folders of the same configuration: what one has that the other has not.

    python -m bench.chaos_compare UNDISTURBED OTHER        prints every difference; exit code 1 if there is one

Compared are all tables that stages leave, the steps of every training, the exported weights, and the names of all files. Times are
not, nor what only names a moment or a process.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.chaos_faults import NODE, Fault
from vidalign import files

TOLERANCE = 1e-4  # of figures that were computed in batches of another make-up: log-likelihoods, losses, scores
WEIGHTS_TOLERANCE = 1e-6
OTHER_RANKS_TOLERANCE = (
    1e-4  # of weights that another number of ranks trained: their gradients are added up in another order
)
STAGES = ("responses", "pairs", "quarantine", "eval", "scores")
TIMES = ("seconds", "latency_s")
# Of weights that are compared as numbers, the version of the policy is a hash of every bit.
ASIDE = (*TIMES, "policy_version")
NUMBERED = ((r"(^|/)lease/\d+\.json$", r"\1lease/N.json"), (r"events\.out\.tfevents\..*$", "events.out.tfevents"))


def differences(
    undisturbed: pathlib.Path, other: pathlib.Path, *, weights_tolerance: float = WEIGHTS_TOLERANCE
) -> list[str]:
    """Sentences without a full stop, the first of each kind; empty where there is no difference."""
    found: list[str] = []
    for path in sorted(table for stage in STAGES for table in undisturbed.glob(f"rounds/*/{stage}/*.parquet")):
        name = path.relative_to(undisturbed).as_posix()
        if not (other / name).is_file():
            found.append(f"{name} is missing")
            continue
        found += [f"{name}: {text}" for text in _of_rows(rows_of(path), rows_of(other / name))]
    for path in sorted(undisturbed.glob("rounds/*/train/metrics.jsonl")):
        name = path.relative_to(undisturbed).as_posix()
        rows = [files.read_jsonl(root / name) if (root / name).is_file() else [] for root in (undisturbed, other)]
        found += [f"{name}: {text}" for text in _of_rows(*rows)]
    for path in sorted(undisturbed.glob("rounds/*/model/*.safetensors")):
        found += _of_weights(path, other / path.relative_to(undisturbed), weights_tolerance)
    return found + extra_files(undisturbed, other)


def extra_files(undisturbed: pathlib.Path, other: pathlib.Path) -> list[str]:
    """Files that only one of the two has: results that are lost, or something temporary that was left."""
    expected, there = names_in(undisturbed), names_in(other)
    left, lost = sorted(there - expected), sorted(expected - there)
    return [f"{name} was left" for name in left] + [f"{name} is missing" for name in lost]


def names_in(root: pathlib.Path) -> set[str]:
    """The files of a run, those that carry a number or a time in their names by what they are."""
    found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    for pattern, name in NUMBERED:
        found = {re.sub(pattern, name, each) for each in found}
    return found


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a table."""
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def progress_of(run: pathlib.Path, command: str) -> str:
    """How far a command is: optimizer steps, or what is written of the others' results."""
    if command == "train":
        steps = list(run.glob("rounds/*/train/metrics.jsonl"))
        return f"{sum(len(path.read_bytes().splitlines()) for path in steps)} measurements"
    pattern = {"rollout": "rounds/*/responses/parts/*.json", "evaluate": "rounds/*/eval/**/*"}[command]
    return f"{sum(path.is_file() for path in run.glob(pattern))} files"


def found_nobody(second: Mapping[str, Any], has_ended: bool) -> bool:
    """Whether a command came too late to meet the first: that one `has_ended`, or had made all and was only leaving."""
    return second["exit_code"] == 0 and (has_ended or "nothing is left to do: every stage is finished" in second["said"])


def begun_of(run: pathlib.Path, fault: Fault) -> str:
    """What is another once a command's work has begun: its progress, or for a node's fault in a rollout, the decoded videos."""
    if fault.victim != NODE or fault.command != "rollout":
        return progress_of(run, fault.command)
    return f"{sum(path.is_file() for path in run.glob('frames/**/*'))} files"


def _of_rows(expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if len(expected) != len(found):
        yield f"{len(found)} rows instead of {len(expected)}"
        return
    for number, (row, other) in enumerate(zip(expected, found, strict=True)):
        for name in sorted((row.keys() | other.keys()) - set(ASIDE)):
            if not same(row.get(name), other.get(name)):
                yield f"row {number}, {name}: {_cut(other.get(name))} instead of {_cut(row.get(name))}"
                return


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, numbers with a fraction within `TOLERANCE`."""
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or math.isclose(left, right, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def _of_weights(expected: pathlib.Path, found: pathlib.Path, tolerance: float) -> Iterable[str]:
    import numpy as np
    from safetensors.numpy import load_file

    if not found.is_file():
        return
    left, right = load_file(expected), load_file(found)
    if left.keys() != right.keys():
        yield f"{found.name} has other tensors"
        return
    largest = max(float(np.abs(left[name] - right[name]).max()) for name in left)
    if not largest <= tolerance:
        yield f"{found.name}: weights differ by up to {largest:.1e}"


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("undisturbed", type=pathlib.Path)
    parser.add_argument("other", type=pathlib.Path)
    arguments = parser.parse_args()
    found = differences(arguments.undisturbed, arguments.other)
    print("\n".join(found) or "no difference")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
