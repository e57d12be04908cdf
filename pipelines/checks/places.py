"""Where a run reads, writes and listens: its data, folders that can be written, disks with room, a port that is free."""

from __future__ import annotations

import collections
import os
import pathlib
import secrets
import shutil
from collections.abc import Sequence

from cluster.session import find_address
from pipelines.checks.memory import disk_needed, gib
from pipelines.checks.model import ModelFacts
from pipelines.inputs import Inputs
from pipelines.stages.base import MANIFEST
from pipelines.trackers import check_trackers
from serving.checks import check_address
from vidalign import mirror, storage, stored
from vidalign.config.run import RunConfig, VideoConfig
from vidalign.data.reading import DataRow
from vidalign.data.validate import plural
from vidalign.errors import ClusterError, ConfigError
from vidalign.files import RunFolder
from vidalign.storage import is_uri
from vidalign.types import Example
from vidalign.video.naming import without_question


def check_places(config: RunConfig, stages: Sequence[str], *, connects: bool = False) -> None:
    """Find folders that cannot be written and a port that is taken, before anything is started.

    `connects`: the caller connects to Ray and calls `check_port` then. On a running cluster, the endpoint of a killed driver may have
    the port, which is taken down there.

    Raises:
        ConfigError: a folder that cannot be made or written, or a tracker that cannot be used.
        ClusterError: the endpoint's port is taken, or its media root is no folder.
    """
    if set(stages) - {"report"}:
        check_trackers(config.track)
    run = RunFolder.at(config.run_dir)
    if stored.of(run.root) is not None:
        _check_store(run)
    places = {"run_dir": str(run.root), "video.cache_dir": config.video.cache_dir, "train.cache_dir": config.train.cache_dir}
    for key, place in places.items():
        if place is not None:
            if is_uri(place):
                raise ConfigError(
                    f"{key}={place} must be a path that every node sees; leave it out where run_dir is in a store, which then holds "
                    "what would be there, or mount what it names at the same path on every node and give that"
                )
            _check_writable(key, pathlib.Path(place).absolute())
    for path, is_right in (
        (run.config, pathlib.Path.is_file),
        (run.summary, pathlib.Path.is_file),
        (run.root / "rounds", pathlib.Path.is_dir),
    ):
        if path.exists() and not is_right(path):
            what = "file" if is_right is pathlib.Path.is_file else "folder"
            raise ConfigError(f"{path} is not the {what} that a run keeps there; move it away, or choose another run_dir")
    try:
        check_port(config, stages)
    except ClusterError:
        if not connects or find_address(config.cluster.address) is None:
            raise


def _check_store(run: RunFolder) -> None:
    """Raises `DataError` where the store of a run cannot be written, and `ConfigError` where this node has no room for its mirror."""
    _check_writable(storage.FOLDER, stored.mirrors())
    probe = run.root / f".written-{secrets.token_hex(8)}"
    stored.write_object(probe, b"")
    mirror.remove(probe)


def check_port(config: RunConfig, stages: Sequence[str]) -> None:
    """Raises `ClusterError` where an endpoint is to be started and its port is taken, or its media root is no folder."""
    run = RunFolder.at(config.run_dir)
    if "evaluate" in stages and config.data.eval and not (run.stage("eval", config.rounds - 1) / MANIFEST).is_file():
        check_address(config.serve)


def _check_writable(key: str, place: pathlib.Path) -> None:
    there = _nearest(place)
    if not there.is_dir():
        raise ConfigError(f"{key}={place} cannot be made, because {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}={place} cannot be written: {there} is not writable for this user; choose another folder")


def _nearest(place: pathlib.Path) -> pathlib.Path:
    """The place itself, or the first above it that exists."""
    return next(each for each in (place, *place.parents) if each.exists())


def check_disk(config: RunConfig, model: ModelFacts, stages: Sequence[str]) -> None:
    """Raises `ConfigError` where the exported models and checkpoints of a run surely do not fit onto its disks."""
    if "train" not in stages:
        return
    run = RunFolder.at(config.run_dir)
    if stored.of(run.root) is not None:
        return  # its checkpoints and models go to the store, from whichever nodes write them
    kept = disk_needed(config, model)
    written = sum(_size_of(run.stage(name, index)) for index in range(config.rounds) for name in ("train", "model"))
    free = shutil.disk_usage(_nearest(run.root)).free
    if kept - written > free:
        raise ConfigError(
            f"run_dir={run.root} needs {gib(kept - written)} for exported models and {config.train.num_checkpoints_kept} checkpoints "
            f"a round, and has {gib(free)} left; lower train.num_checkpoints_kept, set train.lora, or choose another disk"
        )


def data_lines(config: RunConfig, inputs: Inputs) -> list[str]:
    """What is read of each split, the videos that are there, and what their frames will take."""
    splits = {
        "train": (config.data.train, [row.example for row in inputs.train]),
        "eval": (config.data.eval, inputs.eval),
        "probe": (config.data.probe, inputs.probe),
    }
    lines = [
        f"{name}: {len(examples):,} examples on {_num_shown(examples):,} videos ({path})"
        for name, (path, examples) in splits.items()
        if path and examples
    ]
    return [
        *lines,
        *frames_lines(config.video, len(inputs.present)),
        *choice_lines(config.video),
        f"videos: {_count(inputs.present):,} present, {_count(inputs.missing):,} missing",
        *ignored_lines([*inputs.train, *inputs.held_out]),
    ]


def ignored_lines(rows: Sequence[DataRow]) -> list[str]:
    """The fields of rows that nothing reads, such as "choices" where the options should be; nothing where all are known."""
    counts = collections.Counter(name for row in rows for name in row.row.model_extra or ())
    said = ", ".join(f"'{name}' ({plural(count, 'row')})" for name, count in sorted(counts.items()))
    return [f"ignored: fields that are not known: {said}"] if said else []


def _num_shown(examples: Sequence[Example]) -> int:
    return _count([name for example in examples for name in example.decoded])


def choice_lines(video: VideoConfig) -> list[str]:
    """How frames are chosen; nothing where they are evenly spread."""
    choice = video.choice
    if choice.kind == "uniform":
        return []
    by = "by how much they hold" if choice.relevance == "none" else f"by {choice.relevance}, on the decoders' CPUs"
    return [f"frames: {choice.keep} to {video.num_frames} of {choice.pool} a video, chosen {by}"]


def frames_lines(video: VideoConfig, num_videos: int) -> list[str]:
    """What decoded frames take on the disk at most, where the options bound it; they are kept once for each video."""
    frames = video.num_frames or video.max_frames
    pixels = video.height * video.width if video.height and video.width else video.max_pixels
    whole = [each for each in (pixels and frames * pixels, video.total_pixels) if each]
    if not whole:
        return []
    where = "video.cache_dir" if video.cache_dir else "run_dir"
    return [f"frames: up to {gib(3 * num_videos * min(whole))} in {where}, of at most {frames} frames a video"]


def _size_of(folder: pathlib.Path) -> int:
    """Bytes of all files below a folder; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _count(names: Sequence[str]) -> int:
    """Of videos, each once however many questions choose its frames."""
    return len({without_question(name) for name in names})
