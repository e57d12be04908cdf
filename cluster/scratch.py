"""Folders for files of one process, of which those that a killed process left are removed by the next one.

<folder>/.owner      who made it, as cluster/lease.py writes it: a process of another machine is never taken for dead
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile

from cluster.lease import is_owner_alive, owner_of, this_process
from vidalign import files
from vidalign.errors import ClusterError, DataError

OWNER = ".owner"
SHORT = "/tmp"
MAX_SOCKET_BYTES = 107  # of a socket's path on Linux
OF_RAY = "/ray/session_2026-11-27_04-35-20_123456_{pid}/sockets/plasma_store"  # what Ray adds to its folder


def folder_for_sockets() -> pathlib.Path:
    """The system's folder for temporary files, or /tmp where the paths of sockets in it are too long: Ray is told so as well.

    Raises:
        ClusterError: they are too long in the folder that `RAY_TMPDIR` names.
    """
    longest = MAX_SOCKET_BYTES - len(OF_RAY.format(pid=os.getpid()))
    given = os.environ.get("RAY_TMPDIR", "")
    if len(os.fsencode(given)) > longest:
        raise ClusterError(
            f"RAY_TMPDIR={given} is too long: Ray keeps sockets there, and Linux bounds their paths to {MAX_SOCKET_BYTES} bytes, so "
            f"that {longest} are left for this folder; name a shorter one, such as {SHORT}"
        )
    usual = tempfile.gettempdir()
    if len(os.fsencode(usual)) <= longest:
        return pathlib.Path(usual)
    os.environ.setdefault("RAY_TMPDIR", SHORT)
    return pathlib.Path(SHORT)


def own(folder: pathlib.Path) -> None:
    """Say that a folder is this process's."""
    files.write_json(folder / OWNER, dataclasses.asdict(this_process("")))


def remove_left(beside: pathlib.Path, pattern: str) -> None:
    """Remove the folders of this name whose processes of this machine have ended, and of this user alone."""
    for folder in beside.glob(pattern):
        with contextlib.suppress(OSError, DataError, KeyError, TypeError):  # another's, or removed meanwhile
            if is_owner_alive(owner_of(files.read_json(folder / OWNER))) is False:
                shutil.rmtree(folder, ignore_errors=True)
