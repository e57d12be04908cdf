"""Data that is elsewhere now: a run whose videos were moved, copied or mounted at another place goes on with what it made of them.

Names of videos are whole paths, in tables and in what a stage was made from. A run knows the folders that its relative names were
relative to (`ROOTS`, and its stored configuration); what it recorded of examples below one of these is then that of the same examples
below the folder of now. Where files of both places are there and differ, they are other videos, and nothing is taken for the same.
"""

from __future__ import annotations

import dataclasses
import filecmp
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pipelines.inputs import Inputs
from vidalign import files
from vidalign.config.run import DataConfig, RunConfig
from vidalign.data.reading import DataRow
from vidalign.data.source import folder_of
from vidalign.files import RunFolder
from vidalign.storage import is_uri
from vidalign.types import Example, PreferencePair
from vidalign.video import naming

ROOTS = "data_roots.json"  # of a run whose data was moved: where it was, the first place first
SAMPLED = 8  # videos whose bytes are compared where the former place is still there
SPLITS = ("train", "probe", "eval")
Roots = Mapping[str, str]  # of each split that the configuration names
RecordT = TypeVar("RecordT", Example, PreferencePair)


@dataclasses.dataclass(frozen=True)
class Moved:
    """Where the data of a run is, and where it was: `former` are the places of earlier commands that differ from `now`."""

    now: Roots = dataclasses.field(default_factory=dict)
    former: Sequence[Roots] = ()

    def names(self, split: str, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The names of videos as they were at each former place."""
        for roots in self.former:
            yield tuple(relocated(name, self.now.get(split, ""), roots.get(split, "")) for name in names)

    def examples(self, split: str, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """The examples as they were at each former place."""
        for roots in self.former:
            yield [_relocated(example, self.now.get(split, ""), roots.get(split, "")) for example in examples]

    def rows(self, rows: Sequence[DataRow]) -> Iterator[list[DataRow]]:
        """The rows of training as they were at each former place."""
        for roots in self.former:
            here, there = self.now.get("train", ""), roots.get("train", "")
            yield [
                dataclasses.replace(
                    row,
                    example=_relocated(row.example, here, there),
                    pair=None if row.pair is None else _relocated(row.pair, here, there),
                )
                for row in rows
            ]

    def renamed(self, split: str, examples: Sequence[Example]) -> dict[str, str]:
        """{former name: name of now} of everything that is decoded for these examples."""
        names = list(dict.fromkeys(name for example in examples for name in example.decoded))
        return {
            old: new for former in self.names(split, names) for old, new in zip(former, names, strict=True) if old != new
        }


def moved(run: RunFolder, stored: RunConfig | None, data: DataConfig, inputs: Inputs) -> Moved:
    """`stored`: the configuration in the run's folder, if there is one."""
    now, former = roots_of(data), []
    for roots in [*_kept(run), *([roots_of(stored.data)] if stored is not None else []), *_seen(run, now, inputs)]:
        if roots != now and roots not in former and not _differ(Moved(now, [roots]), inputs):
            former.append(roots)
    return Moved(now, former)


def record(run: RunFolder, data: Moved, inputs: Inputs) -> None:
    """Keep where the data was, for the commands after this one, and let clips that are there be found by the names of now too."""
    if not data.former:
        return
    known = _kept(run)
    files.write_json(run.root / ROOTS, [*known, *(roots for roots in [*data.former, data.now] if roots not in known)])
    names = data.renamed("train", [row.example for row in inputs.train]) | data.renamed("probe", inputs.probe)
    for path in run.root.glob("rounds/*/*/frames.json") if names else ():
        kept = files.read_json(path)
        added = {new: kept[old] for old, new in names.items() if old in kept and new not in kept}
        if added:
            files.write_json(path, {**kept, **added})


def roots_of(data: DataConfig) -> dict[str, str]:
    """What the relative videos of each data file are relative to: a folder or a uri. The file itself may be gone."""
    given = {split: getattr(data, split) for split in SPLITS}
    return {split: _root(data.video_root or path, is_folder=bool(data.video_root)) for split, path in given.items() if path}


def _root(place: str, *, is_folder: bool) -> str:
    if is_uri(place):
        uri = place.rstrip("/")
        return uri if is_folder or not pathlib.PurePosixPath(uri).suffix else uri.rpartition("/")[0]
    path = pathlib.Path(place)
    was_folder = not path.exists() and not path.suffix and not place.startswith("hf:")
    return str((path if is_folder or was_folder else folder_of(place)).absolute())


def _kept(run: RunFolder) -> list[Roots]:
    path = run.root / ROOTS
    return files.read_json(path) if path.is_file() else []


def _seen(run: RunFolder, now: Roots, inputs: Inputs) -> Iterator[Roots]:
    """Where the clips of a rollout say that the first video of training was, as where the run's config.yaml was edited."""
    first = next((name for row in inputs.train for name in row.example.decoded), None)
    path = run.stage("responses") / "frames.json"
    if first is None or not path.is_file() or (inside := relocated(first, now["train"], "/")) == first:
        return
    inside = (naming.local_path(naming.visual_of(inside).uris[0]) or "").lstrip("/")
    for name in files.read_json(path):
        place = naming.visual_of(name).uris[0]
        if inside and place.endswith(f"/{inside}"):
            there = (naming.local_path(place) or place).removesuffix(f"/{inside}")
            yield {split: there if root == now["train"] else root for split, root in now.items()}


def _differ(data: Moved, inputs: Inputs) -> bool:
    """Whether files of the former place are there and are other ones: all by their size, some by their bytes."""
    examples = {"train": [row.example for row in inputs.train], "probe": inputs.probe, "eval": inputs.eval}
    names = {old: new for split, each in examples.items() for old, new in data.renamed(split, each).items()}
    both = [pair for old, new in names.items() for pair in zip(_paths(old), _paths(new), strict=True)]
    there = [
        (old, new) for old, new in both if os.path.isfile(old) and os.path.isfile(new) and not os.path.samefile(old, new)
    ]
    if any(os.path.getsize(old) != os.path.getsize(new) for old, new in there):
        return True
    return any(not filecmp.cmp(old, new, shallow=False) for old, new in there[:: max(1, len(there) // SAMPLED)])


def _paths(name: str) -> list[str]:
    return [naming.local_path(uri) or "" for uri in naming.visual_of(name).uris]


def relocated(name: str, here: str, there: str) -> str:
    """The name of a video below `here` as it is below `there`; any other name as it is."""
    if not here or not there or here == there:
        return name
    visual = naming.visual_of(name)
    uris = tuple(_relocated_uri(uri, here, there) for uri in visual.uris)
    if visual.kind == "list":
        uris = tuple(map(naming.as_uri, uris))
    return name if uris == visual.uris else naming.name_of(dataclasses.replace(visual, uris=uris))


def _relocated_uri(uri: str, here: str, there: str) -> str:
    path = naming.local_path(uri) if "://" not in here else uri
    begin = here.rstrip("/") + "/"
    if path is None or not path.startswith(begin):
        return uri
    place = f"{there.rstrip('/')}/{path.removeprefix(begin)}"
    return naming.as_uri(place) if uri.startswith("file:") else place


def _relocated(record: RecordT, here: str, there: str) -> RecordT:
    changed: dict[str, Any] = {}
    for name in ("video", "videos", "images", "rejected_video", "rejected_videos"):
        value = getattr(record, name, None)
        if value:
            new = (
                relocated(value, here, there) if isinstance(value, str) else tuple(relocated(v, here, there) for v in value)
            )
            changed[name] = new
    return dataclasses.replace(record, **changed)
