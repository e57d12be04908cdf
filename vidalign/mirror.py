"""A mirror of a run that is kept in an object store, on one node's own disk.

The store is the truth. A file is put into it whole before it takes its place in a mirror, and carries the store's time of change from
then on: so all that stands in a mirror is in the store, or was, and what is behind or was removed there is told by size and time.
A small file that may yet be replaced in the second that it is of has a time that is none, and is fetched again when it is read again.
Names that begin with a dot are a node's own, and so are the logs of trackers until they are put. Of paths in no mirror, whatever is
here does nothing. What is not in use is given up where a node has no room for more (vidalign/room.py).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import IO, Any, cast

from vidalign import room, storage, stored
from vidalign.errors import DataError
from vidalign.stored import Place, listing, of, place_of, time_of, tried

# What is fetched when it is read.
LAZY = re.compile(r"(frames|cache|lease)/|rounds/\d+/(train/ray/|eval/noise/|model/.*\.safetensors$)")


def opened(name: str, key: str = "RUN") -> str:
    """The folder of a run that is named by its folder or its uri, of which this node then has all but what is fetched when it is read.

    Raises:
        ConfigError: the uri is mistyped. DataError: there is nothing, or the store does not answer.
    """
    if not storage.is_uri(name):
        return name
    folder = stored.folder_of(name, key)
    if not fetched(folder / "config.yaml").is_file():
        raise DataError(f"{key}={name}: there is no run at this uri, which would have a config.yaml; correct it")
    refresh(folder)
    return str(folder)


@contextlib.contextmanager
def kept(path: pathlib.Path, draft: str | os.PathLike[str]) -> Iterator[None]:
    """A block in which a draft takes the place of `path`, once it is in the store, if that is where the path is kept."""
    place = of(path)
    if place is None or place.is_own:
        yield
        return
    _hold(place)
    with _locked(place.run):
        put(path, pathlib.Path(draft))
        yield
    _came(path)


def put(path: pathlib.Path, source: pathlib.Path | None = None) -> None:
    """Put a file whole into the store, as `path`. Raises `DataError` where the store does not take it."""
    place, source = place_of(path), source or path

    def act() -> None:
        size, (store, key) = source.stat().st_size, place.stored
        with source.open("rb") as file:
            stored.send(store, key, file)
        [found] = store.get_file_info([key])
        if found.size != size:
            raise ConnectionError(f"{found.size} of {size:,} bytes arrived")
        stored.saw(place, found)
        os.utime(source, ns=(time_of(found), time_of(found)))

    tried(act, place, "written")


def put_files(folder: pathlib.Path, source: pathlib.Path, *, last: str = "") -> None:
    """Put all files of `source` as `folder`, beside what is there. `last`: the file that is put after the others."""
    wanted = {path.relative_to(source).as_posix(): path for path in source.rglob("*") if path.is_file()}
    with concurrent.futures.ThreadPoolExecutor(storage.AT_ONCE) as pool:
        list(pool.map(lambda name: put(folder / name, wanted[name]), sorted(wanted.keys() - {last})))
    if last in wanted:
        put(folder / last, wanted[last])


def put_folder(folder: pathlib.Path, source: pathlib.Path, *, last: str) -> None:
    """Put all files of `source` as `folder`, in place of what is there. Nothing for a folder in no mirror.

    `last`: the file that says that all are there; an older one goes first, and this one comes last.
    """
    place = of(folder)
    if place is None:
        return
    for name in sorted(listing(place), key=lambda name: name != last):
        if name == last or not (source / name).is_file():
            remove(folder / name)
    put_files(folder, source, last=last)


def put_loose(folder: pathlib.Path) -> None:
    """Put the logs of a tracker below `folder` that have changed since they were put. Nothing for a folder in no mirror."""
    place = of(folder)
    if place is None or not folder.is_dir():
        return
    there = listing(place)
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        found = there.get(path.relative_to(folder).as_posix())
        if found is None or not _same(path, found):
            put(path)


def fetched(path: str | os.PathLike[str], *, always: bool = True) -> pathlib.Path:
    """This node's path of a file, which is there if the store has it, as the store has it now; of a file in no mirror, its own.

    With `always` False, what is there is taken as it is, which is right for files that are named by their content.
    """
    place = of(path)
    if place is None:
        return pathlib.Path(path)
    local = place.local
    _hold(place)
    if not place.is_own and (always or not local.is_file()):
        _fetch(place)
    else:
        room.used(local)
    return local


def refresh(folder: pathlib.Path, *, everything: bool = False) -> bool:
    """Bring a folder of a mirror in line with the store. Returns whether the store has anything there; True of any other folder.

    Args:
        everything: also fetch what is otherwise fetched when it is read, such as weights (`LAZY`).
    """
    place = of(folder)
    if place is None:
        return True
    _hold(place)
    with _locked(f"{place.run} fetching", alone=True):
        with _locked(place.run, alone=True):  # nothing is put between the listing and what is done by it
            found = {Place(place.run, f"{place.name}/{name}".lstrip("/")): each for name, each in listing(place).items()}
            found = {each: info for each, info in found.items() if not each.is_own}
            known = {each.local: info for each, info in found.items()}
            _drop(place, known)
        missing = [each for each in found if (everything or not LAZY.match(each.name)) and not each.local.is_file()]
        with concurrent.futures.ThreadPoolExecutor(storage.AT_ONCE) as pool:
            list(pool.map(_fetch, missing))
    return bool(found)


def remove(path: pathlib.Path) -> None:
    """Remove a file or a folder, also from the store that it is kept in."""
    place = of(path)
    if place is not None:

        def act() -> None:
            store, key = place.stored
            [found] = store.get_file_info([key])
            with contextlib.suppress(FileNotFoundError):
                if found.is_file:
                    store.delete_file(key)
                elif found.type.name == "Directory":
                    store.delete_dir(key)

        tried(act, place, "written")
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """A file to read a part of: this node's, or, where it has none, the store's. Raises `OSError`."""
    place = of(path)
    if place is None or place.local.is_file():
        return open(path if place is None else place.local, "rb")
    store, key = place.stored
    with storage.os_errors():
        return cast(IO[bytes], store.open_input_file(key))


def _fetch(place: Place) -> None:
    """Make this node's copy of a file what the store has now; where the store has none, there is none here."""

    def act() -> None:
        store, key = place.stored
        [found] = store.get_file_info([key])
        local = place.local
        if not found.is_file:
            if local.is_file():
                with _locked(place.run, alone=True):
                    if not store.get_file_info([key])[0].is_file:
                        local.unlink(missing_ok=True)
            return
        if _same(local, found):
            room.used(local)
            return
        stored.saw(place, found)
        settled = found.size > storage.SMALL_BYTES or stored.is_settled(place, found)
        local.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=local.parent, prefix=f".{local.name}.")
        os.close(handle)
        try:
            try:
                storage.fetch_file(store, key, pathlib.Path(draft), found.size)
            except FileNotFoundError as error:
                raise ConnectionError(f"{key} was removed meanwhile") from error
            changed = time_of(found) - (0 if settled else 86_400 * stored.SECOND)
            os.utime(draft, ns=(changed, changed))
            os.chmod(draft, 0o644)
            with _locked(place.run):
                os.replace(draft, local)
            _came(local)
        finally:
            pathlib.Path(draft).unlink(missing_ok=True)

    tried(act, place, "read")


def _hold(place: Place) -> None:
    room.hold(Place(place.run, "").local)


def _came(path: pathlib.Path) -> None:
    """Something took its place in a mirror, and may be read at once."""
    with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
        room.used(path)
        room.came(*storage.node_folder(), path.stat().st_size)


def _drop(place: Place, known: dict[pathlib.Path, Any]) -> None:
    """Remove what a mirror has and its store has not, or has in another form."""
    for folder, _, inside in os.walk(place.local, topdown=False):
        for name in inside:
            path = pathlib.Path(folder, name)
            each = of(path)
            if each is not None and not each.is_own and not (path in known and _same(path, known[path])):
                path.unlink(missing_ok=True)
        if not place.name:  # of the whole run: nobody is about to write into it
            with contextlib.suppress(OSError):  # it holds something
                os.rmdir(folder)


def _same(path: pathlib.Path, found: Any) -> bool:
    try:
        here = path.stat()
    except OSError:
        return False
    return here.st_size == found.size and here.st_mtime_ns // stored.SECOND == time_of(found) // stored.SECOND


@contextlib.contextmanager
def _locked(what: str, *, alone: bool = False) -> Iterator[None]:
    """A lock of this node: writers share it, and who goes by a listing has it alone. Whoever comes first gets it first."""
    path = stored.mirrors() / ".locks" / urllib.parse.quote(what, safe="")[-200:]
    path.parent.mkdir(parents=True, exist_ok=True)
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        gate = os.open(f"{path}.gate", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(gate, how)  # else writers that follow one another would keep out who waits to be alone
            fcntl.flock(handle, how)
        finally:
            os.close(gate)
        yield
    finally:
        os.close(handle)
