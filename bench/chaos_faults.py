"""The faults of bench/chaos.py: whom they hit, in which command, and when."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psutil

POLL_S = 0.3
COMMANDS = ("rollout", "train", "evaluate")
DRIVER = "driver"
NODE = "node"
GCS = "/gcs/gcs_server"
RAYLET = "/raylet/raylet"
CHILD = "vidalign.video.decode_child"
DECODER = r"ray::MapWorker\(Map\(ChunkDecoder"
GENERATOR = r"ray::MapWorker\(Map\(Generator"
REPLICA = r"ray::ServeReplica(?!.*PolicyIngress)"
INGRESS = r"ray::ServeReplica.*PolicyIngress"
RANK = "ray::RayTrainWorker"
ELASTIC: dict[str, Any] = {
    "command": "train",
    "two_nodes": True,
    "overrides": ("train.num_workers=[1, 2]", "train.micro_batch_size=1"),
    "num_ranks_change": True,
}
TWO_RANKS: dict[str, Any] = {
    "command": "train",
    "overrides": ("train.num_workers=2", "train.micro_batch_size=1"),
    "then_overrides": (),
    "num_ranks_change": True,
}
DISKS = ("full", "read-only")
STARTED_TWICE = "the same command a second time"
GONE_WITHIN_S = 10.0
TORN = {
    "newest checkpoint": "rounds/*/train/ray/*/state/*.pt",
    "newest part": "rounds/*/responses/parts/*",
    "lease": "lease/*.json",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """A signal to a process, a disk that fails, videos that are gone, or a command that is started twice.

    Attributes:
        name: what it is called in the table.
        command: the command that runs meanwhile.
        victim: a pattern of the command line of the process; `DRIVER` is the command itself, `NODE` the raylet of the
            second of two nodes; "" for a fault of no process.
        within_s: it is hit at a random moment of so many seconds after it first appeared.
        signal: what it gets.
        stopped_s: it gets SIGSTOP, and SIGCONT after so many seconds, in the place of `signal`.
        place: what fails before the command starts: one of `DISKS` for the run's folder, "videos" or "model" for a folder that is
            not there.
        room_bytes: of a full disk.
        then: what is broken after the command and before the next: "newest checkpoint", "newest part", "lease".
        two_nodes: the command runs on a cluster of two nodes, which outlives it.
        overrides: of the configuration, for the command that is hit and the one after it.
        then_overrides: in their place for the command after it; None: the same.
        num_ranks_change: weights may then differ by `chaos_compare.OTHER_RANKS_TOLERANCE`.
        twice: the same command is started a second time at that moment, in the place of a signal.
    """

    name: str
    command: str
    victim: str = ""
    within_s: float = 5.0
    signal: signal.Signals = signal.SIGKILL
    stopped_s: float = 0.0
    place: str = ""
    room_bytes: int = 500_000  # some decoded videos of these, and less than a checkpoint
    then: str = ""
    two_nodes: bool = False
    overrides: tuple[str, ...] = ()
    then_overrides: tuple[str, ...] | None = None
    num_ranks_change: bool = False
    twice: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.command}"


def of_driver(command: str, within_s: float) -> list[Fault]:
    """Faults that every command may meet."""
    driver: dict[str, Any] = {"command": command, "victim": DRIVER, "within_s": within_s}
    ray: dict[str, Any] = {"command": command, "within_s": within_s * 2 / 3}
    room: dict[str, Any] = {"room_bytes": 30_000} if command == "evaluate" else {}
    return [
        Fault(name="driver", **driver),
        Fault(name="driver gets SIGTERM", signal=signal.SIGTERM, **driver),
        Fault(name="driver gets SIGINT", signal=signal.SIGINT, **driver),
        Fault(name="driver stopped for 20 s", stopped_s=20, **driver),
        Fault(name="driver, and its lease is torn", then="lease", **driver),
        Fault(name=STARTED_TWICE, twice=True, **driver),
        Fault(name="raylet of the only node", victim=RAYLET, **ray),
        Fault(name="Ray's GCS server", victim=GCS, **ray),
        *(Fault(name=f"run_dir {kind}", command=command, place=kind, **room) for kind in DISKS),
        Fault(name="model's folder gone", command=command, place="model"),
    ]


FAULTS = (
    Fault(name="decoder's child", command="rollout", victim=CHILD, within_s=3),
    Fault(name="decoder's child stopped for 10 s", command="rollout", victim=CHILD, within_s=3, stopped_s=10),
    Fault(name="decoder", command="rollout", victim=DECODER, within_s=8),
    Fault(name="generator", command="rollout", victim=GENERATOR, within_s=14),
    Fault(name="generator stopped for 10 s", command="rollout", victim=GENERATOR, within_s=14, stopped_s=10),
    Fault(name="driver, and its newest part is torn", command="rollout", victim=DRIVER, within_s=20, then="newest part"),
    Fault(name="videos gone", command="rollout", place="videos"),
    *of_driver("rollout", 20),
    Fault(name="training rank", command="train", victim=RANK, within_s=20),
    Fault(name="training rank stopped for 10 s", command="train", victim=RANK, within_s=20, stopped_s=10),
    Fault(name="training's controller", command="train", victim="ray::TrainController", within_s=20),
    Fault(
        name="driver, and its newest checkpoint is torn",
        command="train",
        victim=DRIVER,
        within_s=28,
        then="newest checkpoint",
    ),
    *of_driver("train", 28),
    Fault(name="raylet of one of two nodes, train.num_workers=[1, 2]", victim=NODE, within_s=6, **ELASTIC),
    Fault(name="training rank of two, train.num_workers=[1, 2]", victim=RANK, within_s=20, **ELASTIC),
    Fault(name="driver, and then one rank in the place of two", victim=DRIVER, within_s=28, **TWO_RANKS),
    Fault(name="raylet of one of two nodes", command="rollout", victim=NODE, within_s=10, two_nodes=True),
    Fault(name="raylet of one of two nodes", command="evaluate", victim=NODE, within_s=20, two_nodes=True),
    Fault(name="replica", command="evaluate", victim=REPLICA, within_s=25),
    Fault(name="replica stopped for 10 s", command="evaluate", victim=REPLICA, within_s=25, stopped_s=10),
    Fault(name="ingress", command="evaluate", victim=INGRESS, within_s=25),
    Fault(name="Serve's controller", command="evaluate", victim="ray::ServeController", within_s=25),
    Fault(name="HAProxy", command="evaluate", victim=r"/haproxy\S* -", within_s=25),
    Fault(name="HAProxy's manager", command="evaluate", victim="ray::HAProxyManager", within_s=25),
    Fault(name="videos gone", command="evaluate", place="videos"),
    *of_driver("evaluate", 35),
)


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
        """What still runs `within_s` seconds from now, by their command lines."""
        deadline = time.monotonic() + within_s
        while (there := self.look()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        found = []
        for process in there:
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline())[:80] or process.name())
        return found

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
    node: psutil.Process | None = None,
    begun: Callable[[], bool] = lambda: True,
) -> Hit | None:
    """Send the victim its signal, or wait for the moment of a fault without one. None where the command ended before.

    A `node` is there before the command: the time of its fault counts from the moment at which the work has `begun`.

    Raises:
        RuntimeError: the victim got the signal and lives.
    """
    moment = draw.uniform(0, within_s)
    seen: float | None = None
    while command.poll() is None:
        if fault.victim == NODE and node is not None:
            there = [node] if begun() else []
        else:
            there = [psutil.Process(command.pid)] if fault.victim == DRIVER or fault.twice else started.named(fault.victim)
        if there and seen is None:
            seen = time.monotonic()
        if there and seen is not None and time.monotonic() - seen >= moment:
            with contextlib.suppress(psutil.NoSuchProcess):
                started.look()
                line = " ".join(there[0].cmdline())[:120]
                if not fault.twice:
                    strike(there[0], fault)
                like = frozenset(process.pid for process in there)
                return Hit(seconds=time.monotonic() - seen, line=line, like=like)
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
