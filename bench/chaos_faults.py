"""The faults of bench/chaos.py: whom they hit, in which command, and when."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import psutil

POLL_S = 0.3
COMMANDS = ("rollout", "train", "evaluate")
DRIVER = "driver"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """SIGKILL of a process, or a disk that fails.

    Attributes:
        name: what it is called in the table.
        command: the command that runs meanwhile.
        victim: a text in the command line of the process; `DRIVER` is the command itself; "" for a fault of the disk.
        within_s: it is hit at a random moment of so many seconds after it first appeared.
        disk: "full" or "read-only".
    """

    name: str
    command: str
    victim: str = ""
    within_s: float = 5.0
    disk: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.command}"


FAULTS = (
    Fault(name="decoder's child", command="rollout", victim="vidalign.video.decode_child", within_s=3),
    Fault(name="decoder", command="rollout", victim="ray::MapWorker(Map(ChunkDecoder))", within_s=8),
    Fault(name="generator", command="rollout", victim="ray::MapWorker(Map(Generator))", within_s=14),
    Fault(name="raylet", command="rollout", victim="/raylet/raylet", within_s=14),
    Fault(name="driver", command="rollout", victim=DRIVER, within_s=20),
    Fault(name="run_dir full", command="rollout", disk="full"),
    Fault(name="run_dir read-only", command="rollout", disk="read-only"),
    Fault(name="training rank", command="train", victim="ray::RayTrainWorker", within_s=20),
    Fault(name="training's controller", command="train", victim="ray::TrainController", within_s=20),
    Fault(name="driver", command="train", victim=DRIVER, within_s=28),
    Fault(name="run_dir full", command="train", disk="full"),
    Fault(name="replica", command="evaluate", victim="ray::ServeReplica", within_s=25),
    Fault(name="Serve's controller", command="evaluate", victim="ray::ServeController", within_s=25),
    Fault(name="HAProxy", command="evaluate", victim="haproxy", within_s=25),
    Fault(name="driver", command="evaluate", victim=DRIVER, within_s=35),
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

    def named(self, text: str) -> psutil.Process | None:
        """The first that lives and has this text in its command line."""
        for process in self.look():
            with contextlib.suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    return process
        return None

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


def kill_at_random(
    fault: Fault, command: subprocess.Popen[bytes], started: Descendants, draw: random.Random, within_s: float
) -> float | None:
    """Send SIGKILL to the victim. Returns how long after its appearance; None where the command ended before."""
    moment = draw.uniform(0, within_s)
    seen: float | None = None
    while command.poll() is None:
        victim = psutil.Process(command.pid) if fault.victim == DRIVER else started.named(fault.victim)
        if victim is not None and seen is None:
            seen = time.monotonic()
        if victim is not None and seen is not None and time.monotonic() - seen >= moment:
            with contextlib.suppress(psutil.NoSuchProcess):
                started.look()
                victim.send_signal(signal.SIGKILL)
                return time.monotonic() - seen
        time.sleep(POLL_S)
    return None


# A disk that fails


def can_mount() -> bool:
    """Whether a file system in memory can be mounted here."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def failing_disk(folder: pathlib.Path, kind: str):  # type: ignore[no-untyped-def]
    """A run folder on a file system of its own, which is full or read-only until the function that this yields is called."""
    kept = folder.with_name(folder.name + "-kept")
    folder.rename(kept)
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1G", "none", str(folder))
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    try:
        yield _break(folder, kind)
    finally:
        shutil.rmtree(kept)
        shutil.copytree(folder, kept)
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)


def _break(folder: pathlib.Path, kind: str) -> Callable[[], None]:
    if kind == "read-only":
        _mount("-o", "remount,ro", str(folder))
        return lambda: _mount("-o", "remount,rw", str(folder))
    used = shutil.disk_usage(folder).used
    _mount("-o", f"remount,size={used + ROOM_BYTES}", str(folder))
    return lambda: _mount("-o", "remount,size=1G", str(folder))


ROOM_BYTES = 500_000  # some decoded videos of these, and less than a checkpoint


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)
