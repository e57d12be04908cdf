"""One run, one driver: who works on a folder holds its lease, a small object that it renews.

    <folder>/lease/000007.json      {"id", "command", "user", "host", "machine", "pid", "started", "since", "beat", "ended"}

Only the record with the highest number counts. A driver that takes the folder makes the next one, which fails if somebody else made
it first; so the store needs to put an object that is not there yet, to list and to read, and neither locks nor renames.

No clock is compared with another. A holder on this machine is asked for by its process number and the time at which that process
started. One elsewhere is watched: it is alive if its record changes, and gone if the record stayed the same for `STALE_S` of the
watcher's own time. A holder that was taken for dead finds a higher number, and stops.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import pathlib
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from vidalign import files
from vidalign.errors import ConfigError

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
        self.path = folder / FOLDER
        self._folder, self._on_loss, self._on_wait = folder, on_loss, on_wait
        self._renew_s, self._stale_s = renew_s, stale_s
        self._record: dict[str, Any] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Lease:
        try:
            self._take()
        except OSError as error:
            raise ConfigError(
                f"{self._folder} cannot be written ({error.strerror}); free some space, or choose another run_dir"
            ) from error
        self._renewing = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._renewing.join()
        if not self.is_lost:
            with contextlib.suppress(OSError):  # it is then taken for dead, which it is soon
                files.write_json(self.path, {**self._record, "ended": time.time()})

    def _take(self) -> None:
        place = self._folder / FOLDER
        place.mkdir(parents=True, exist_ok=True)
        while True:
            number, found = newest(place)
            self._wait_for_end(number, found)
            self._record = record_of(self.owner)
            self.path = _path(place, number + 1)
            if not _put_if_absent(self.path, self._record) or newest(place)[0] != number + 1:
                continue  # somebody else was faster
            for path in place.iterdir():
                if path != self.path:
                    path.unlink(missing_ok=True)
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
        self._on_wait(f"waiting up to {self._stale_s:g} s to see whether {owner}, which held {self._folder}, is still there")
        began = time.monotonic()
        while time.monotonic() - began < self._stale_s:
            time.sleep(min(1.0, self._renew_s))
            now_number, now = newest(self._folder / FOLDER)
            if now.get("ended"):
                return
            if (now_number, now) != (number, found):
                raise in_use(self._folder, now or found)

    def _renew(self) -> None:
        while not self._ended.wait(self._renew_s):
            try:
                number, found = newest(self.path.parent)
                if number > int(self.path.stem):
                    self.is_lost = True
                    self._on_loss(
                        ConfigError(
                            f"{owner_of(found)} took over {self._folder}, because this command did not renew its lease for "
                            f"{self._stale_s:g} s; that one goes on, and this one stops"
                        )
                    )
                    return
                self._record["beat"] += 1
                files.write_bytes_atomic(self.path, json.dumps(self._record).encode(), durable=False)
            except OSError:
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
        f"{folder} is in use by {owner_of(record)} since {since}; wait until it has ended, stop it, or choose another run_dir"
    )


def newest(place: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """The highest number and its record; 0 and {} where there is none, and {} for one that is torn."""
    try:
        numbers = [int(path.stem) for path in place.glob("*.json") if path.stem.isdigit()]
    except OSError:
        numbers = []
    if not numbers:
        return 0, {}
    try:
        record = json.loads(_path(place, max(numbers)).read_bytes())
        owner_of(record)
        return max(numbers), record
    except (OSError, ValueError, TypeError, KeyError):
        return max(numbers), {}


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


def _path(place: pathlib.Path, number: int) -> pathlib.Path:
    return place / f"{number:06d}.json"


def _put_if_absent(path: pathlib.Path, record: dict[str, Any]) -> bool:
    """Write a file that is not there yet, whole from its first moment. Returns whether this did it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(json.dumps(record).encode())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(draft, 0o644)
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with path.open("xb") as file:
                    file.write(json.dumps(record).encode())
            except FileExistsError:
                return False
        return True
    finally:
        pathlib.Path(draft).unlink(missing_ok=True)
