"""How the faults of bench/chaos_faults.py are made to happen, and which processes a command started."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO

import psutil

from bench.chaos_faults import DRIVER, NODE, Fault
from bench.chaos_network import Network

POLL_S = 0.3
# They try for 60 s to tell the store of their killed raylet of its end, and then end (seen: after 63 s).
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
GONE_WITHIN_S = 10.0
TORN = {
    "newest checkpoint": "rounds/*/train/ray/*/state/*.pt",
    "newest part": "rounds/*/responses/parts/*",
    "lease": "lease/*.json",
}


class Descendants:
    """All processes that a command started, also those that outlive it or have been handed on to the system."""

    def __init__(self, process: psutil.Process) -> None:
        self._root = process
        self._known: dict[tuple[int, float], psutil.Process] = {}

    def look(self) -> list[psutil.Process]:
        """Those that live now."""
        family = {process.pid for process in (self._root, *self._known.values()) if is_alive(process)}
        others = [process for process in psutil.process_iter(["ppid", "create_time"]) if process.pid not in family]
        while found := [process for process in others if process.info["ppid"] in family]:
            self._known |= {(process.pid, process.info["create_time"]): process for process in found}
            family |= {process.pid for process in found}
            others = [process for process in others if process.pid not in family]
        return [process for process in self._known.values() if is_alive(process)]

    def named(self, pattern: str) -> list[psutil.Process]:
        """Those that live and have this in their command lines."""
        found = []
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                if re.search(pattern, " ".join(process.cmdline())):
                    found.append(process)
        return found

    def left(self, within_s: float) -> list[str]:
        """What still runs `within_s` seconds from now, by their command lines; Ray's `AGENTS` are not waited for."""
        deadline = time.monotonic() + within_s
        while (there := self._lines()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return there

    def _lines(self) -> list[str]:
        found = []
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline()).strip()[:80] or process.name())
        return [line for line in found if not line.startswith(AGENTS)]

    def end(self) -> None:
        """End what is left, by force."""
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                process.kill()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs: one that has ended and was not waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoNodes:
    """A cluster: its address, its second node's raylet and id, and the processes of all nodes; where its orders are written to, and
    what is between its nodes, if that may be cut.
    """

    address: str
    raylet: psutil.Process
    node_id: str
    started: Descendants
    orders: IO[bytes]
    between: Network | None = None

    def add(self) -> None:
        """Start one node more."""
        self.orders.write(b"add\n")
        self.orders.flush()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hit:
    """A process that was hit so many seconds after it appeared: its command line, and those that lived then and had its like."""

    seconds: float
    line: str
    like: frozenset[int]


def hit_at_random(
    fault: Fault,
    command: subprocess.Popen[bytes],
    started: Descendants,
    draw: random.Random,
    within_s: float,
    nodes: TwoNodes | None = None,
    begun: Callable[[], bool] = lambda: True,
) -> Hit | None:
    """Send the victim its signal, or wait for the moment of a fault without one. None where the command ended before.

    `nodes` are there before the command: the time of a fault of one counts from the moment at which the work has `begun`, as that of
    a fault that says so.

    Raises:
        RuntimeError: the victim got the signal and lives.
    """
    moment = draw.uniform(0, within_s)
    seen: float | None = None
    while command.poll() is None:
        if fault.victim == NODE and nodes is not None:
            there = [nodes.raylet] if begun() else []
        else:
            there = [psutil.Process(command.pid)] if fault.victim == DRIVER or fault.twice else started.named(fault.victim)
            there = there if begun() or not fault.once_begun else []
        if there and seen is None:
            seen = time.monotonic()
        if there and seen is not None and time.monotonic() - seen >= moment:
            with contextlib.suppress(psutil.NoSuchProcess):
                started.look()
                line, seconds = " ".join(there[0].cmdline()).strip()[:120], time.monotonic() - seen
                if fault.notice_s and nodes is not None:
                    give_notice(nodes, fault.notice_s)
                elif fault.cut_s and nodes is not None and nodes.between is not None:
                    cut(nodes.between, fault.cut_s)
                elif not fault.twice:
                    strike(there[0], fault)
                like = frozenset(process.pid for process in there)
                return Hit(seconds=seconds, line=line, like=like)
        time.sleep(POLL_S)
    return None


def strike(process: psutil.Process, fault: Fault) -> None:
    """Raises `psutil.NoSuchProcess` where it has ended already, and `RuntimeError` where it outlives SIGKILL."""
    if fault.stopped_s:
        process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(fault.stopped_s)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        return
    process.send_signal(fault.signal)
    if fault.signal == signal.SIGKILL:
        deadline = time.monotonic() + GONE_WITHIN_S
        while is_alive(process):
            if time.monotonic() > deadline:
                raise RuntimeError(f"process {process.pid} outlives SIGKILL")
            time.sleep(0.01)


def give_notice(nodes: TwoNodes, within_s: float) -> None:
    """Say that the second node is to be taken away, as a cloud does of a spot machine."""
    words = [
        "drain-node",
        "--address",
        nodes.address,
        "--node-id",
        nodes.node_id,
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
    ]
    command = [sys.executable, "-m", "ray.scripts.scripts", *words, "--reason-message", "chaos"]
    subprocess.run([*command, "--deadline-remaining-seconds", str(int(within_s))], check=True, stdout=subprocess.DEVNULL)


def cut(between: Network, seconds: float) -> None:
    """Pull the cable for so many seconds, or for good."""
    between.pull()
    if math.isfinite(seconds):
        try:
            time.sleep(seconds)
        finally:
            between.plug()


# What is broken between two commands


def torn(run: pathlib.Path, what: str) -> bool:
    """Cut the newest file of a kind to a half, as a power failure may leave it. Returns whether there was one."""
    there = [path for path in run.glob(TORN[what]) if path.is_file()]
    if not there:
        return False
    newest = max(there, key=lambda path: (path.stat().st_mtime_ns, path.stat().st_size))
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    return True


# A place that fails


@contextlib.contextmanager
def gone(folder: pathlib.Path):  # type: ignore[no-untyped-def]
    """A folder that is not there until the function that this yields is called."""
    aside = folder.with_name(folder.name + "-gone")
    folder.rename(aside)

    def mend() -> None:
        if aside.is_dir():
            aside.rename(folder)

    try:
        yield mend
    finally:
        mend()


def can_mount() -> bool:
    """Whether a file system in memory can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def failing_disk(folder: pathlib.Path, kind: str, room_bytes: int):  # type: ignore[no-untyped-def]
    """A run folder on a file system of its own, which is full or read-only until the function that this yields is called."""
    kept = folder.with_name(folder.name + "-kept")
    folder.rename(kept)
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1G", "none", str(folder))
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    try:
        yield _break(folder, kind, room_bytes)
    finally:
        shutil.rmtree(kept)
        shutil.copytree(folder, kept)
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)


def _break(folder: pathlib.Path, kind: str, room_bytes: int) -> Callable[[], None]:
    if kind == "read-only":
        _mount("-o", "remount,ro", str(folder))
        return lambda: _mount("-o", "remount,rw", str(folder))
    used = shutil.disk_usage(folder).used
    _mount("-o", f"remount,size={used + room_bytes}", str(folder))
    return lambda: _mount("-o", "remount,size=1G", str(folder))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
