"""What a stage of a run is, and `once`, which claims it, runs it, finishes it, and skips it from then on.

A stage's folder is finished when its `manifest.json` exists, which is written last. The manifest holds what the stage was made
from, option by option, so that a changed option is an error that names it, and never a silent mixture. What does not change a
result (how often something is logged, how many workers there are, where a cache is) is not in it.

    begun.json      {"format": 2, "stage": its name, "inputs": {option: value}, "layout": how partial results are laid out}
    manifest.json   {"format": 2, "stage", "inputs", "started_at", "finished_at", facts…}    started: for the last time

A folder of format 1 holds one hash of its inputs and does not say what they were. It is recognised by `Stage.inputs_v1` of the
stage as the run's config.yaml has it (`Stage.earlier`), compared option by option like the others, and written in format 2.
"""

from __future__ import annotations

import abc
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from vidalign import files
from vidalign.errors import ConfigError, DataError
from vidalign.stored import shown
from vidalign.types import stable_hash

MANIFEST = "manifest.json"
BEGUN = "begun.json"
FORMAT = 2
HASH_V1 = "hash_v1"  # what a manifest of format 1 held as its inputs


class Stage(abc.ABC):
    """One step of a run that leaves a folder behind.

    name: as its manifest says it. folder: where its results go. needs: folders that must be finished before. earlier: makes
    the same stage as the configuration in the run's folder describes it, or None where that is not known. once_in_layout: options
    that the layout of older folders names, and on which partial results no longer depend.
    """

    name: ClassVar[str]
    once_in_layout: ClassVar[frozenset[str]] = frozenset()
    folder: pathlib.Path
    earlier: Callable[[], Stage | None] | None = None

    @property
    def needs(self) -> Sequence[pathlib.Path]:
        return ()

    @abc.abstractmethod
    def inputs(self) -> dict[str, Any]:
        """What decides the result, as JSON values; nested dicts become dotted names in messages."""

    def layout(self) -> dict[str, Any]:
        """What partial results depend on beside `inputs`, such as how many examples are in a part file."""
        return {}

    def inputs_v1(self) -> Any:
        """The inputs whose hash a folder of format 1 holds; None for a stage that had no folder then."""
        return None

    def elsewhere(self) -> Iterable[Stage]:
        """The same stage as it was while its data was at other places: a folder that was made from that is this one's too."""
        return ()

    @abc.abstractmethod
    def run(self) -> dict[str, Any]:
        """Make the results, or the rest of them. Returns facts for the manifest."""


def once(stage: Stage) -> dict[str, Any]:
    """Run a stage unless it is finished. Returns its manifest.

    Raises:
        ConfigError: the folder was begun or finished from other inputs; the message names each option that differs.
        DataError: a stage that this one needs is not finished.
    """
    inputs = _as_stored(flat(stage.inputs()))
    if _is_finished(stage, inputs):
        return manifest(stage.folder)
    for folder in stage.needs:
        manifest(folder)
    made_from = {"format": FORMAT, "stage": stage.name, "inputs": inputs}
    files.write_json(stage.folder / BEGUN, {**made_from, "layout": flat(stage.layout())})
    started_at = time.time()
    facts = stage.run()
    finished = {**made_from, "started_at": started_at, "finished_at": time.time(), **facts}
    files.write_json(stage.folder / MANIFEST, finished)
    return finished


def check(stage: Stage) -> bool:
    """Whether the stage is finished. Raises `ConfigError` where its folder was made from other inputs."""
    if not ((stage.folder / MANIFEST).is_file() or (stage.folder / BEGUN).is_file()):
        return False
    return _is_finished(stage, _as_stored(flat(stage.inputs())))


def _is_finished(stage: Stage, inputs: Mapping[str, Any]) -> bool:
    """`inputs`: those of the stage now, flat."""
    made_from = {"format": FORMAT, "stage": stage.name, "inputs": inputs}
    finished, begun = stage.folder / MANIFEST, stage.folder / BEGUN
    if finished.is_file():
        made = files.read_json(finished)
        _compare(stage, inputs, made, f"{shown(stage.folder)} was finished with another configuration")
        if not made.get("format"):
            files.write_json(finished, {**made, **made_from, HASH_V1: made["inputs"]})
        return True
    if begun.is_file():
        made = files.read_json(begun)
        _compare(stage, inputs, made, f"{shown(stage.folder)} was begun with another configuration")
        if isinstance(made, str):
            files.write_json(begun, {**made_from, "layout": flat(stage.layout())})
    return False


def manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a finished stage. Raises `DataError` where it is not finished."""
    if not (folder / MANIFEST).is_file():
        raise DataError(
            f"{shown(folder)} is not finished; run the stage that makes it first (`vidalign align` runs all of them)"
        )
    return files.read_json(folder / MANIFEST)


def identity(folder: pathlib.Path) -> str:
    """A hash of what a finished stage was made from, for the inputs of the stages after it."""
    return stable_hash(manifest(folder)["inputs"])


def identity_v1(folder: pathlib.Path) -> str | None:
    """The same as a stage of format 1 knew it; None where the folder was never one of format 1."""
    made = manifest(folder)
    return made.get(HASH_V1) if made.get("format") else made["inputs"]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, the way options are written."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "option was X and is now Y" for every option in which two flat mappings differ."""
    absent = object()

    def shown(value: Any) -> str:
        return "not there" if value is absent else repr(value)

    return [
        f"{name} was {shown(before.get(name, absent))} and is now {shown(now.get(name, absent))}"
        for name in dict.fromkeys([*before, *now])
        if before.get(name, absent) != now.get(name, absent)
    ]


def _compare(stage: Stage, now: Mapping[str, Any], made: Any, what: str) -> None:
    """`made`: what a manifest or a begun.json holds, of either format; `now`: the stage's inputs, flat."""
    way_out = "set it back, choose a new run_dir, or delete that folder to make it again"
    if isinstance(made, str) or not made.get("format"):  # format 1
        found = made if isinstance(made, str) else made["inputs"]
        candidates = (stage.earlier() if stage.earlier else None, stage)
        known = [as_begun for as_begun in candidates if as_begun and stable_hash(as_begun.inputs_v1()) == found]
        if not known:
            if any(stable_hash(other.inputs_v1()) == found for other in stage.elsewhere()):
                return
            raise ConfigError(f"{what} or other data; {way_out}")
        before = _as_stored(flat(known[0].inputs()))
    else:
        before = made["inputs"]
        layout = _as_stored(flat(stage.layout())) if "layout" in made else {}
        old = {name: value for name, value in made.get("layout", {}).items() if name not in stage.once_in_layout}
        before, now = before | old, {**now, **layout}
    differing = changes(before, now)
    if differing:
        others = (_as_stored({**now, **flat(other.inputs())}) for other in stage.elsewhere())
        differing = min([differing, *(changes(before, other) for other in others)], key=len)
    if differing:
        raise ConfigError(f"{what}: {'; '.join(differing)}; {way_out}")


def _as_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a JSON file."""
    return json.loads(json.dumps(values))
