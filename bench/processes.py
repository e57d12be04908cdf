"""A part of a script in a process of its own, so that a start, a peak of memory or a Ray is that part's alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def result_of(module: str, *arguments: object) -> Any:
    """Run `python -m module arguments…`; returns what its last line says, which is JSON.

    Raises:
        SystemExit: the process failed; the message ends with what it printed last.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        said = f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        raise SystemExit(f"{' '.join(command[1:])} failed with code {done.returncode}:\n{said}")
    return json.loads(done.stdout.splitlines()[-1])


def tell(result: Any) -> None:
    """Print what `result_of` reads."""
    print(json.dumps(result), flush=True)
