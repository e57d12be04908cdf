"""Folders for files of one process, of which those that a killed process left are removed by the next one.

<folder>/.owner      who made it, as cluster/lease.py writes it: a process of another machine is never taken for dead
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil

from cluster.lease import is_owner_alive, owner_of, this_process
from vidalign import files
from vidalign.errors import DataError

OWNER = ".owner"


def own(folder: pathlib.Path) -> None:
    """Say that a folder is this process's."""
    files.write_json(folder / OWNER, dataclasses.asdict(this_process("")))


def remove_left(beside: pathlib.Path, pattern: str) -> None:
    """Remove the folders of this name whose processes of this machine have ended, and of this user alone."""
    for folder in beside.glob(pattern):
        with contextlib.suppress(OSError, DataError, KeyError, TypeError):  # another's, or removed meanwhile
            if is_owner_alive(owner_of(files.read_json(folder / OWNER))) is False:
                shutil.rmtree(folder, ignore_errors=True)
