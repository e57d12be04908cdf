"""Whether a command has anything left to do, told in a moment: nothing that it read or wrote has changed since it ended.

    run folder/finished.json   {"stages", "config", "code", "files": {path: [bytes, time of change in ns]}}

The record is of one command's end and only saves time: where anything differs, the manifests of the stages decide. Importing this
module imports nothing heavy.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from vidalign import __version__, files, mirror
from vidalign.config.loading import dump_config
from vidalign.config.run import RunConfig
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.storage import is_uri

RECORD = "finished.json"
CODE = ("vidalign", "cluster", "actors", "pipelines", "serving")


def record(run: RunFolder, config: RunConfig, stages: Sequence[str]) -> None:
    """Note that these stages ended well, unless they read what cannot be compared in a moment."""
    if (found := _state(run, config)) is not None:
        files.write_json(run.root / RECORD, {"stages": list(stages), **found})


def summary_if_finished(config: RunConfig, stages: Sequence[str]) -> dict[str, Any] | None:
    """The summary of a run of which these stages are finished and nothing has changed since; None in every other case."""
    run = RunFolder.at(config.run_dir)
    try:
        mirror.refresh(run.root)
        noted = files.read_json(run.root / RECORD)
        asked, done = set(stages) - {"report"}, set(noted["stages"])
        if (
            not asked
            or not set(stages) <= done
            or {**noted, "stages": None} != {"stages": None, **(_state(run, config) or {})}
        ):
            return None
        return files.read_json(run.summary)
    except (DataError, OSError, KeyError, TypeError):
        return None


def _state(run: RunFolder, config: RunConfig) -> dict[str, Any] | None:
    """What a record holds beside its stages; None for data or a model that is no file or folder of this machine."""
    data = [path for path in (config.data.train, config.data.eval, config.data.probe) if path]
    read = [config.model.path, *data]
    if any(is_uri(path) or not os.path.exists(path) for path in read):
        return None
    root = pathlib.Path(run.root)
    written = [
        run.config,
        run.summary,
        run.report / "index.html",
        *root.glob("rounds/*/*/*.json"),
        *root.glob("rounds/*/*/*.parquet"),
    ]
    written += root.glob("rounds/*/model/*")
    return {
        "config": dump_config(config),
        "code": [__version__, max(_times_of_code(), default=0)],
        "files": {str(path): size for path in (*_inside(read), *written) if (size := _size(path)) is not None},
    }


def _inside(paths: Iterable[str]) -> Iterable[pathlib.Path]:
    for path in map(pathlib.Path, paths):
        yield from sorted(path.iterdir()) if path.is_dir() else [path]


def _size(path: pathlib.Path) -> list[int] | None:
    return [(found := path.stat()).st_size, found.st_mtime_ns] if path.is_file() else None


def _times_of_code() -> Iterable[int]:
    root = pathlib.Path(__file__).parents[1]
    for package in CODE:
        for folder, _, names in os.walk(root / package):
            yield from (os.stat(os.path.join(folder, name)).st_mtime_ns for name in names if not name.endswith(".pyc"))
