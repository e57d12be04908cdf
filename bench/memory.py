"""Resident memory of a process, as Linux accounts for it. getrusage's peak of a child begins with its parent's; this does not."""

from __future__ import annotations

import pathlib


def resident(field: str, pid: int | str = "self") -> int:
    """Bytes: VmRSS now, VmHWM at its peak. Raises `RuntimeError` where the kernel says nothing of it, as of a dead process."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no {field}")
