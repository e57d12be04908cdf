"""Whether packages can be imported: in processes of their own, because a broken one may kill its process."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

IMPORT_TIMEOUT_S = 300.0
# Imports each module of its arguments and writes what came of it as a line of JSON, on a pipe that no library writes to.
IMPORTER = """
import importlib, json, os, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        found = {"version": str(getattr(module, "__version__", "") or "")}
        if name == "torch":
            found |= {"cuda": module.version.cuda, "num_gpus": module.cuda.device_count()}
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps([name, found]), file=out, flush=True)
os._exit(0)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """What came of importing a module: its version, or the error. `cuda` and `num_gpus` are torch's."""

    version: str = ""
    error: str = ""
    cuda: str | None = None
    num_gpus: int = 0


def import_each(modules: Sequence[str], timeout_s: float = IMPORT_TIMEOUT_S) -> Iterator[tuple[str, Imported]]:
    """Import modules one after the other, in one process as long as that lives, and say what came of each as soon as it is known.

    A module that fails is imported once more in a process of its own: what was imported before it may be the cause.
    """
    left = list(modules)
    while left:
        for name, found in _imported_together(left, timeout_s):
            left.remove(name)
            yield name, alone(name, timeout_s) if found.error else found
        if left:  # the process died of the next one
            name = left.pop(0)
            yield name, alone(name, timeout_s)


def alone(module: str, timeout_s: float = IMPORT_TIMEOUT_S) -> Imported:
    """Import one module in a process of its own."""
    try:
        done = subprocess.run(_command([module]), capture_output=True, text=True, timeout=timeout_s, env=_environment())
    except subprocess.TimeoutExpired:
        return Imported(error=f"importing {module} did not finish within {timeout_s:g} s")
    for found in _read(done.stdout.splitlines()):
        return found[1]
    last = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return Imported(error=last[-1])


def _imported_together(modules: Sequence[str], timeout_s: float) -> Iterator[tuple[str, Imported]]:
    with subprocess.Popen(
        _command(modules), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=_environment()
    ) as process:
        assert process.stdout is not None
        timer = threading.Timer(timeout_s, process.kill)
        timer.start()
        try:
            yield from _read(process.stdout)
        finally:
            timer.cancel()
            process.kill()


def _read(lines: Iterator[str] | Sequence[str]) -> Iterator[tuple[str, Imported]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            name, found = json.loads(line)
            yield name, Imported(**found)


def _command(modules: Sequence[str]) -> list[str]:
    return [sys.executable, "-c", IMPORTER, *modules]


def _environment() -> Mapping[str, str]:
    return os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
