"""What a command comes to, before it does anything."""

from __future__ import annotations

import dataclasses
import pathlib

from pipelines.stages.base import BEGUN, MANIFEST
from vidalign.stored import shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ahead:
    """A stage that a command comes to, and whether it is finished."""

    name: str
    round_index: int
    folder: pathlib.Path
    is_finished: bool

    def __str__(self) -> str:
        where = f"{self.name} of round {self.round_index}"
        if self.is_finished:
            return f"{where} is finished"
        if (self.folder / MANIFEST).is_file():
            return f"{where} is looked at again, because what it is made from is made first"
        if (self.folder / BEGUN).is_file():
            return f"{where} goes on from where it stopped"
        if self.folder.is_dir() and any(self.folder.iterdir()):
            return f"{where} is made again, because {shown(self.folder)} has no {MANIFEST}"
        return f"{where} is to be made"
