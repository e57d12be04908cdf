"""Why an engine's process ended while it started: vLLM says "see root cause above", which is in a log of the replica's node."""

from __future__ import annotations

import os
import pathlib
import re

MOST_READ = 256 * 1024  # bytes at the end of a log
_RAISED = re.compile(r"(?:^|[\])] )((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt|Exit): .+)$")
POINTS_AT_IT = "See root cause above"


def own_log() -> pathlib.Path | None:
    """The file that this process, and those that it starts, write their errors to; None: it is no file."""
    try:
        path = pathlib.Path(os.readlink("/proc/self/fd/2"))
    except OSError:
        return None
    return path if path.is_file() else None


def root_cause(log: pathlib.Path | None) -> str:
    """The last exception that is told at the end of `log` and does not itself point at another one, or ""."""
    if log is None:
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MOST_READ))
        lines = file.read().decode(errors="replace").splitlines()
    told = [match[1].strip() for line in lines if (match := _RAISED.search(line)) and POINTS_AT_IT not in line]
    return told[-1] if told else ""
