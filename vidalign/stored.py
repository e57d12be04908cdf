"""What a run that is kept in an object store is on a node, and the store's objects as they are.

    s3://bucket/run/rounds/0/…  ◄─►  <VIDALIGN_STAGED>/mirrored-runs/s3+bucket+run/rounds/0/…        on every node that needs it

A path says by itself whether it is in a mirror, so whoever has the path needs nothing else. Nodes may have their mirrors at different
places: `here` gives this node's path for another's. `vidalign/mirror.py` keeps a mirror in line with its store.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import time
import urllib.parse
from collections.abc import Callable
from typing import IO, Any, TypeVar, cast

from vidalign import room, storage
from vidalign.errors import ConfigError, DataError

ValueT = TypeVar("ValueT")
SECOND = 10**9
RACY_S = 5  # a small object that changed a moment ago may change again in the same second
GIVE_UP_S = 60.0  # after the first try, where each takes long
FINAL = re.compile(
    "NO_SUCH_BUCKET|ACCESS_DENIED|SIGNATURE|INVALID_ACCESS_KEY|HTTP status 40[13]|"
    "Permanent error|access token|AuthenticationException|Base64|path component",  # of the clients of gs:// and az://, and of pyarrow
    re.IGNORECASE,
)

_newest: dict[str, int] = {}  # the latest time of change that was seen in each bucket: its store's clock is not behind it


@dataclasses.dataclass(frozen=True)
class Place:
    """Something in a run that is kept in a store: `run` is the run's uri, and `name` the path inside it, "" for the run itself."""

    run: str
    name: str

    @property
    def local(self) -> pathlib.Path:
        """Where it is on this node."""
        return mirrors() / _folder_name(self.run) / self.name

    @property
    def uri(self) -> str:
        return f"{self.run}/{self.name}" if self.name else self.run

    @property
    def stored(self) -> tuple[Any, str]:
        """The store, and the place in it."""
        return storage.store_of(self.uri)

    @property
    def is_own(self) -> bool:
        """Whether it is this node's own, and not kept in the store."""
        return room.is_own(self.name)


def of(path: str | os.PathLike[str]) -> Place | None:
    """What a path in a mirror stands for, also one of another node; None for any other path."""
    _, mark, rest = os.fspath(path).partition(f"/{room.MIRRORS}/")
    folder, _, name = rest.partition("/")
    scheme, plus, inside = folder.partition("+")
    if not mark or not plus or scheme not in storage.SCHEMES:
        return None
    return Place(f"{scheme}://{urllib.parse.unquote(inside.replace('+', '%2F'))}", name.rstrip("/"))


def folder_of(uri: str, key: str = "run_dir") -> pathlib.Path:
    """Where this node mirrors the run at a uri. Raises `ConfigError` for a uri that is mistyped or cannot be a run's."""
    storage.check_uri(key, uri)
    scheme, _, inside = uri.rstrip("/").partition("://")
    if "//" in inside or "/" not in inside:
        raise ConfigError(f"{key}={uri} names no place inside a bucket; write {scheme}://bucket/name-of-the-run")
    run = f"{scheme.lower()}://{inside}"
    if len(_folder_name(run)) > 255:
        raise ConfigError(f"{key}={uri} is too long for the name of a folder on a node; choose a shorter place")
    return Place(run, "").local


def here(path: str) -> str:
    """This node's path for one that another node may have given."""
    place = of(path)
    return path if place is None else str(place.local)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as people know it: the uri of what is in a store."""
    place = of(path)
    return os.fspath(path) if place is None else place.uri


def read_object(path: pathlib.Path) -> bytes:
    """What the store has at a path of a mirror, without a copy here. Raises `FileNotFoundError`, or `DataError` as `put` does."""
    place = place_of(path)

    def act() -> bytes:
        store, key = place.stored
        with store.open_input_stream(key) as file:
            return cast(bytes, file.read())

    return tried(act, place, "read")


def write_object(path: pathlib.Path, data: bytes) -> None:
    """Put bytes as an object, without a copy here. Raises `DataError` as `put` does."""
    place = place_of(path)

    def act() -> None:
        store, key = place.stored
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(_write, store, key, data).result()

    tried(act, place, "written")


def send(store: Any, key: str, file: IO[bytes]) -> None:
    """Write an object in a thread, which Ctrl-C does not reach: a stream that is left in the middle would be kept as it is."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(_copy, store, key, file).result()


def _copy(store: Any, key: str, file: IO[bytes]) -> None:
    stream = store.open_output_stream(key)
    try:
        with storage.os_errors():
            shutil.copyfileobj(file, stream, storage.CHUNK_BYTES)
    except OSError:
        with contextlib.suppress(OSError), storage.os_errors():
            stream.close()  # what the store did not take fails here again, and leaves what was there
            store.delete_file(key)  # half of a file that cannot be read
        raise
    stream.close()


def _write(store: Any, key: str, data: bytes) -> None:
    stream = store.open_output_stream(key)
    stream.write(data)
    stream.close()


def listing(place: Place) -> dict[str, Any]:
    """{name below the place: pyarrow's FileInfo} of all files."""
    from pyarrow import fs

    def act() -> dict[str, Any]:
        store, key = place.stored
        found = store.get_file_info(fs.FileSelector(key, recursive=True, allow_not_found=True))
        for each in found:
            saw(place, each)
        return {each.path[len(key) + 1 :]: each for each in found if each.is_file}

    return tried(act, place, "read")


def tried(act: Callable[[], ValueT], place: Place, what: str) -> ValueT:
    """`act()`, again after a pause where the store fails. A fault of this node's disk, or an object that is not there, is raised."""
    began = time.monotonic()
    for number in range(1, storage.TRIES + 1):
        try:
            with storage.os_errors():
                return act()
        except OSError as error:
            if error.filename or isinstance(error, FileNotFoundError):
                raise
            if number == storage.TRIES or time.monotonic() - began > GIVE_UP_S or FINAL.search(str(error)):
                reason = " ".join(str(error).split())[:300]
                raise DataError(
                    f"{place.uri} cannot be {what}: {reason}; check the uri, the credentials and that its store answers, and run the "
                    "same command again: it continues"
                ) from error
            time.sleep(storage.PAUSE_S * 2 ** (number - 1))
    raise AssertionError


def place_of(path: pathlib.Path) -> Place:
    """`of` a path that is known to be in a mirror."""
    place = of(path)
    assert place is not None, path
    return place


def time_of(found: Any) -> int:
    """When an object changed, in ns: whole seconds, which are what every answer of a store has."""
    return (found.mtime_ns or 0) // SECOND * SECOND


def saw(place: Place, found: Any) -> None:
    """Learn of the clock of a place's store from one of its objects."""
    bucket = _bucket(place)
    _newest[bucket] = max(_newest.get(bucket, 0), time_of(found))


def is_settled(place: Place, found: Any) -> bool:
    """Whether what is read of an object from now on is all that it was at its time of change, by the store's clock, not a node's."""
    return _newest.get(_bucket(place), 0) >= time_of(found) + RACY_S * SECOND


def _bucket(place: Place) -> str:
    return "/".join(place.run.split("/")[:3])


def _folder_name(run: str) -> str:
    scheme, _, inside = run.partition("://")
    return f"{scheme}+{urllib.parse.quote(inside, safe='').replace('%2F', '+')}"


def mirrors() -> pathlib.Path:
    return storage.node_folder()[0] / room.MIRRORS
