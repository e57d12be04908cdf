"""One run, one driver: who works on a folder holds its lease, a small object that it renews.

    <folder>/lease/000007.json      {"id", "command", "user", "host", "machine", "pid", "started", "since", "beat", "ended"}

Only the record with the highest number counts. A driver that takes the folder makes the next one, which fails if somebody else made
it first; so the store needs to put an object that is not there yet, to list and to read, and neither locks nor renames. In an object
store not even that: see `cluster/lease_records.py`.

No clock is compared with another. A holder on this machine is asked for by its process number and the time at which that process
started. One elsewhere is watched: it is alive if its record changes, and gone if the record stayed the same for `STALE_S` of the
watcher's own time. A holder that was taken for dead finds a higher number, and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.lease_records import Records
from vidalign import stored
from vidalign.errors import ConfigError, DataError

FOLDER = "lease"
RENEW_S = 5.0
STALE_S = 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """A process: `machine` names the running system and its space of process numbers, `started` is when the process did."""

    id: str
    command: str
    user: str
    host: str
    machine: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"`{self.command}` ({self.user}, process {self.pid} on {self.host})"


class Lease:
    """The lease of a folder for the duration of a `with` block.

    Args:
        command: what holds it, for the messages of others.
        on_loss: called from a thread with the error, once somebody else took over.
        on_wait: called with a sentence where a holder on another machine has to be watched.

    Raises:
        ConfigError: on entering: somebody else holds it, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        command: str,
        *,
        owner: Owner | None = None,
        on_loss: Callable[[ConfigError], None] = lambda error: None,
        on_wait: Callable[[str], None] = lambda text: None,
        renew_s: float = RENEW_S,
        stale_s: float = STALE_S,
    ) -> None:
        self.owner = owner or this_process(command)
        self.is_lost = False
        self._number, self._records, self._shown = 0, Records(folder / FOLDER, _is_gone), stored.shown(folder)
        self._folder, self._on_loss, self._on_wait = folder, on_loss, on_wait
        self._renew_s, self._stale_s = renew_s, stale_s
        self._record: dict[str, Any] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        try:
            self._take()
        except OSError as error:
            raise ConfigError(
                f"{self._shown} cannot be written ({error.strerror}); free some space, or choose another run_dir"
            ) from error
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewing.join()
        if not self.is_lost:
            with contextlib.suppress(OSError, DataError):  # it is then taken for dead, which it is soon
                self._records.write({**self._record, "ended": time.time()}, durable=True)

    @property
    def path(self) -> pathlib.Path:
        """Where the record of this lease is."""
        return self._records.path

    def _take(self) -> None:
        if stored.of(self._folder) is None:
            (self._folder / FOLDER).mkdir(parents=True, exist_ok=True)
        while True:
            number, found = self._records.newest()
            self._wait_for_end(number, found)
            self._number, self._record = number + 1, record_of(self.owner)
            if self._records.claim(self._number, self._record):  # else somebody else was faster
                return

    def _wait_for_end(self, number: int, found: dict[str, Any]) -> None:
        """Return once the newest record is of nobody who lives. Raises `ConfigError` as soon as its holder is known to live."""
        if not found or found.get("ended"):
            return
        owner = owner_of(found)
        alive = is_owner_alive(owner)
        if alive:
            raise in_use(self._folder, found)
        if alive is False:
            return
        self._on_wait(f"waiting up to {self._stale_s:g} s to see whether {owner}, which held {self._shown}, is still there")
        began = time.monotonic()
        while time.monotonic() - began < self._stale_s:
            time.sleep(min(1.0, self._renew_s))
            now_number, now = self._records.newest()
            if now.get("ended"):
                return
            if (now_number, now) != (number, found):
                raise in_use(self._folder, now or found)

    def _renew(self) -> None:
        while not self._ended.wait(self._renew_s):
            try:
                number, found = self._records.newest()
                if number > self._number:
                    self.is_lost = True
                    self._on_loss(
                        ConfigError(
                            f"{owner_of(found)} took over {self._shown}, because this command did not renew its lease for "
                            f"{self._stale_s:g} s; that one goes on, and this one stops"
                        )
                    )
                    return
                self._record["beat"] += 1
                self._records.write(self._record)
            except (OSError, DataError):
                continue  # a store that does not answer for a moment; if for long, somebody else takes over


def check_free(folder: pathlib.Path) -> None:
    """Raises `ConfigError` where another process of this machine holds the folder's lease. Waits for nothing, writes nothing."""
    _, found = newest(folder / FOLDER)
    if found and not found.get("ended") and is_owner_alive(owner_of(found)):
        raise in_use(folder, found)


def in_use(folder: pathlib.Path, record: dict[str, Any]) -> ConfigError:
    """The refusal of a folder that somebody else works on."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.get("since", 0)))
    return ConfigError(
        f"{stored.shown(folder)} is in use by {owner_of(record)} since {since}; wait until it has ended, stop it, or choose another "
        "run_dir"
    )


def newest(place: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """The record that counts in a lease's folder, see `Records.newest`."""
    return Records(place, _is_gone).newest()


def this_process(command: str, id: str = "") -> Owner:
    """The owner that this process is."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        user = str(os.getuid())
    pid = os.getpid()
    return Owner(
        id=id or secrets.token_hex(8),
        command=command,
        user=user,
        host=socket.gethostname(),
        machine=this_machine(),
        pid=pid,
        started=start_of(pid),
    )


def record_of(owner: Owner) -> dict[str, Any]:
    """What a lease that begins now holds. `since` is for people alone."""
    return {**dataclasses.asdict(owner), "since": time.time(), "beat": 0, "ended": None}


def owner_of(record: dict[str, Any]) -> Owner:
    """Raises `KeyError` or `TypeError` for what is no record."""
    return Owner(**{field.name: record[field.name] for field in dataclasses.fields(Owner)})


def is_owner_alive(owner: Owner) -> bool | None:
    """Whether a process of this machine lives; None for one of another machine."""
    return is_alive(owner.pid, owner.started) if owner.machine == this_machine() else None


def _is_gone(record: dict[str, Any]) -> bool:
    return is_owner_alive(owner_of(record)) is False


def is_alive(pid: int, started: str) -> bool:
    """Whether the process with this number that started then is there. `started`: of `start_of`."""
    if not pathlib.Path("/proc/self/stat").is_file():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return bool(started) and start_of(pid) == started


def start_of(pid: int) -> str:
    """When a process started, in ticks since the system did; "" of one that is gone, or where the system does not say it."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def this_machine() -> str:
    """The name of this start of the system, and of the space that its process numbers are of, as containers have their own."""
    boot, space = pathlib.Path("/proc/sys/kernel/random/boot_id"), pathlib.Path("/proc/self/ns/pid")
    try:
        return f"{boot.read_text(encoding='ascii').strip()} {os.readlink(space)}"
    except OSError:
        return socket.gethostname()
