"""One command of a run as a process of its own, watched to its end: for bench/chaos.py."""

from __future__ import annotations

import atexit
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import psutil

from bench.chaos_faults import DRIVER, NODE, Fault
from bench.chaos_strikes import POLL_S, Descendants, Hit
from serving.proxy import free_port

DEADLINE_S = 300.0  # for each command
ENDS_WITHIN_S = 20.0  # processes, after their command


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
