"""Room for what a node stages: what was not used for the longest time is given up first, and never what is in use.

    <root>/<digest>/                             a model or a data file             in use while a process has it
    <root>/mirrored-runs/<run>/                  a run                              in use while a process works on it
    <root>/mirrored-runs/<run>/frames|cache/…    its clips and features, each       in use for ten minutes after it was read or made

Of a run that is in use, clips and features are given up alone; of any other, all that its store has. Locks say what is in use: the
system lets go of them when a process ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import shutil
import time
from collections.abc import Callable, Iterator

MIRRORS = "mirrored-runs"
LOOSE = frozenset(("tensorboard", "wandb"))  # logs that grow: a node's own until they are put
DIGEST = re.compile("[0-9a-f]{24}")  # the name of what is staged whole; beside them are locks, drafts and mirrors
READ_AGAIN = ("frames", "cache")  # of a run: named by content, and fetched whenever they are read
JUST_USED_S = 600.0
LOOKS = 50  # at what is there, while as much comes as there may be

_held: dict[pathlib.Path, int] = {}  # the locks of the mirrors that this process works on
_added: dict[pathlib.Path, int] = {}  # bytes that came since this process last looked, by root


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Something that may be given up: when it was last used, its bytes, and how; that returns whether it was."""

    used: float
    size: int
    give_up: Callable[[], bool]


def is_own(name: str) -> bool:
    """Whether a path inside of a run is a node's own, which its store may not have."""
    return any(part.startswith(".") or part in LOOSE for part in name.split("/"))


def hold(mirror: pathlib.Path) -> None:
    """Keep a run's mirror as long as this process lives. One that is just being given up is waited for."""
    if mirror not in _held:
        handle = _opened(mirror.parents[1], mirror)
        fcntl.flock(handle, fcntl.LOCK_SH)
        _held[mirror] = handle
        with contextlib.suppress(OSError):
            mirror.mkdir(parents=True, exist_ok=True)
            os.utime(mirror)


def used(path: pathlib.Path) -> None:
    """Say that a file of a mirror is read now. Its time of change is its store's, and stays."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def came(root: pathlib.Path, most: int, size: int) -> None:
    """Count what came to mirrors, and now and then make room for it."""
    _added[root] = _added.get(root, most) + size  # the first look is at once
    if _added[root] * LOOKS >= most:
        _added[root] = 0
        make(root, most)


def make(root: pathlib.Path, most: int, needed: int = 0, *, keep: str = "") -> None:
    """Give up what was not used for the longest time until `needed` bytes more are no more than `most`, as far as that goes.

    `keep`: a digest that stays.
    """
    there = [*_staged(root, keep), *_mirrored(root)]
    total = sum(each.size for each in there)
    for each in sorted(there, key=lambda each: each.used):
        if total + needed <= most:
            return
        if each.size and each.give_up():
            total -= each.size


def _staged(root: pathlib.Path, keep: str) -> Iterator[_Kept]:
    for folder in root.iterdir():
        if DIGEST.fullmatch(folder.name) and folder.is_dir():
            size = sum(found.st_size for _, found in _files(folder))
            if folder.name != keep:
                yield _Kept(folder.stat().st_mtime, size, functools.partial(_given_up, root, folder))
            else:
                yield _Kept(time.time(), size, _never)


def _mirrored(root: pathlib.Path) -> Iterator[_Kept]:
    runs = root / MIRRORS
    for run in sorted(runs.iterdir()) if runs.is_dir() else ():
        if run.name.startswith(".") or not run.is_dir():
            continue
        with _alone(root, run) as is_alone:
            pass
        there = [(path, found) for path, found in _files(run) if not is_own(path.relative_to(run).as_posix())]
        if is_alone:
            last = max([run.stat().st_mtime, *(found.st_atime for _, found in there)])
            yield _Kept(last, sum(found.st_size for _, found in there), functools.partial(_given_up_run, root, run))
            continue
        for path, found in there:
            often = path.relative_to(run).parts[0] in READ_AGAIN
            yield _Kept(found.st_atime, found.st_size, functools.partial(_given_up_file, path) if often else _never)


def _never() -> bool:
    return False


def _files(folder: pathlib.Path) -> Iterator[tuple[pathlib.Path, os.stat_result]]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it has just been given up
            if path.is_file():
                yield path, path.stat()


def _given_up(root: pathlib.Path, folder: pathlib.Path) -> bool:
    with _alone(root, folder) as is_alone:
        if is_alone:
            shutil.rmtree(folder, ignore_errors=True)
        return is_alone


def _given_up_run(root: pathlib.Path, run: pathlib.Path) -> bool:
    with _alone(root, run) as is_alone:
        if is_alone:
            for path, _ in list(_files(run)):
                if not is_own(path.relative_to(run).as_posix()):
                    path.unlink(missing_ok=True)
            for folder, _, _ in os.walk(run, topdown=False):
                with contextlib.suppress(OSError):  # it holds something of this node alone
                    os.rmdir(folder)
        return is_alone


def _given_up_file(path: pathlib.Path) -> bool:
    with contextlib.suppress(OSError):
        if time.time() - path.stat().st_atime > JUST_USED_S:
            path.unlink()
            return True
    return False


@contextlib.contextmanager
def _alone(root: pathlib.Path, what: pathlib.Path) -> Iterator[bool]:
    """A block that has something to itself, if nobody uses it; yields whether that is so."""
    handle = _opened(root, what)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


def lock_path(root: pathlib.Path, what: pathlib.Path) -> pathlib.Path:
    """The file whose lock says that something is in use."""
    name = what.name if DIGEST.fullmatch(what.name) else hashlib.sha256(what.name.encode()).hexdigest()[:24]
    return root / ".locks" / name


def _opened(root: pathlib.Path, what: pathlib.Path) -> int:
    path = lock_path(root, what)
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
