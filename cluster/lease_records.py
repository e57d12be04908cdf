"""Where the records of a lease are: files of a folder, or, of a run in an object store, objects beside it.

    <folder>/lease/000007.json                       one file for each number, made only if there is none
    s3://bucket/run/lease/000007-<owner's id>.json   one object for each driver that wants a number

No store has to refuse what is there already: who wants a number puts an object of its own and looks again. Stores show what was put,
so of two that want the same number at least one sees the other, and steps back.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable
from typing import Any

from vidalign import files, mirror, stored

PAUSE_S = 0.5  # of one that stepped back, at most


class Records:
    """The records in one place. `is_gone` says of a record whether its process is known to be gone."""

    def __init__(self, place: pathlib.Path, is_gone: Callable[[dict[str, Any]], bool]) -> None:
        self._place, self._is_gone = place, is_gone
        self._in_store = stored.of(place) is not None
        self._own = ""

    @property
    def path(self) -> pathlib.Path:
        """Where the record that was made is."""
        return self._place / self._own

    def newest(self) -> tuple[int, dict[str, Any]]:
        """The highest number and its record; 0 and {} where there is none, and {} for one that is torn.

        Raises:
            DataError: a store does not answer.
        """
        names = self._names()
        highest = max((_number(name) for name in names), default=0)
        found = [record for name in names if _number(name) == highest and self._is_whole(record := self._read(name))]
        # Of several that wanted one number, those that stepped back, or died while they did, do not count.
        found.sort(key=lambda record: (not record.get("ended"), not self._is_gone(record), record.get("beat", 0)))
        return highest, found[-1] if found else {}

    def claim(self, number: int, record: dict[str, Any]) -> bool:
        """Make the record of a number, unless somebody else has; whether this did it. Those of lower numbers are then removed."""
        if not self._in_store:
            self._own = f"{number:06d}.json"
            made = _put_if_absent(self.path, record) and self.newest()[0] == number
        else:
            self._own = f"{number:06d}-{record['id']}.json"
            self.write(record)
            made = not [name for name in self._names() if name != self._own and _number(name) >= number]
        if made:
            there = self._names() if self._in_store else [path.name for path in self._place.iterdir()]
            for name in there:
                if name != self._own:
                    mirror.remove(self._place / name)
        elif self._in_store:
            mirror.remove(self.path)
            time.sleep(random.uniform(0, PAUSE_S))
        return made

    def write(self, record: dict[str, Any], *, durable: bool = False) -> None:
        """Renew the record that was made. Raises `OSError`, or `DataError` where a store does not answer."""
        if self._in_store:
            stored.write_object(self.path, json.dumps(record).encode())
        else:
            files.write_bytes_atomic(self.path, json.dumps(record).encode(), durable=durable)

    def _is_whole(self, record: dict[str, Any]) -> bool:
        try:
            self._is_gone(record)
        except (KeyError, TypeError):
            return False
        return True

    def _names(self) -> list[str]:
        if self._in_store:
            names = list(stored.listing(stored.place_of(self._place)))
        else:
            try:
                names = [path.name for path in self._place.glob("*.json")]
            except OSError:
                names = []
        return [name for name in names if _number(name) >= 0]

    def _read(self, name: str) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            path = self._place / name
            found = json.loads(stored.read_object(path) if self._in_store else path.read_bytes())
            if isinstance(found, dict):
                return found
        return {}


def _number(name: str) -> int:
    """The number of a record by its name; -1 of what is none."""
    number = name.removesuffix(".json").partition("-")[0]
    return int(number) if number.isdigit() else -1


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
