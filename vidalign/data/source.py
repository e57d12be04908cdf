"""What a data file may be: the rows behind a name, whatever kind of file, folder or hub data set it names.

a.jsonl, a.json (an array, or one object per line), a.parquet, a.arrow, a.csv, a.tsv · shards, as train-*.parquet
a folder with one data file or its shards · a folder that `datasets` saved · a run, or the pairs of one of its rounds
hf:org/name[@revision][:config][/split]
"""

from __future__ import annotations

import collections
import glob
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

from vidalign.data import hub
from vidalign.data.json_array import is_array, read_array
from vidalign.data.lines import Located, read_lines
from vidalign.data.tables import read_arrow, read_csv, read_parquet
from vidalign.errors import DataError

KINDS = "JSONL, JSON, Parquet, Arrow or CSV files, a folder of them, or hf:org/name"
READERS: Mapping[str, Callable[[pathlib.Path], Iterator[Located]]] = {
    ".jsonl": read_lines,
    ".ndjson": read_lines,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".csv": read_csv,
    ".tsv": read_csv,
}
PACKED = frozenset({".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz"})
TABLES = frozenset(READERS) | {".json"}
PAIRS_FILE, GROUPS_FILE = "pairs.parquet", "groups.parquet"
_NUMBERS = re.compile(r"\d+")


def read_source(name: str | pathlib.Path) -> Iterator[Located]:
    """Every row in order with its place, "file:line" or "file: row n" (from 1); a `RowError` in place of a broken row.

    Raises:
        DataError: there is no such file, it is not clear which file is meant, or it cannot be read at all.
    """
    if hub.is_hub_name(str(name)):
        return hub.read_hub(str(name))
    return _read_files(files_of(name))


def files_of(name: str | pathlib.Path) -> list[pathlib.Path]:
    """The files behind a local name, in order. Raises `DataError` as `read_source` does."""
    path = pathlib.Path(name)
    if path.name == GROUPS_FILE or (path / GROUPS_FILE).is_file() or list(path.glob(f"rounds/*/pairs/{GROUPS_FILE}")):
        raise DataError(
            f"{name} holds groups of a run's own replies, which only that run's policy learns from; name the data that the run read"
        )
    if path.is_file():
        return [path]
    if path.is_dir():
        return _files_in(path)
    if glob.has_magic(path.name) and path.parent.is_dir():
        found = sorted(each for each in path.parent.glob(path.name) if each.is_file())
        if found:
            return found
    raise DataError(f"no data file at {name}; give {KINDS}")


def folder_of(name: str | pathlib.Path) -> pathlib.Path:
    """The folder that the relative videos of a source are relative to: the file's, or the folder itself; the working directory
    for a hub data set.
    """
    path = pathlib.Path(name)
    if hub.is_hub_name(str(name)):
        return pathlib.Path()
    return path if path.is_dir() else path.parent


def _read_files(paths: list[pathlib.Path]) -> Iterator[Located]:
    for path in paths:
        if path.suffix.lower() in PACKED:
            raise DataError(f"{path} is compressed; unpack it first, and name what was in it")
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            reader = read_array if is_array(path) else read_lines
        yield from reader(path)


def _files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = _json(folder / "dataset_dict.json").get("splits", [])
        if len(splits) != 1:
            raise DataError(f"{folder} holds the splits {', '.join(splits)}; name one of them, such as {folder / splits[0]}")
        return _files_in(folder / splits[0])
    if (folder / "state.json").is_file():
        return _saved_files(folder)
    if (folder / "rounds").is_dir():
        return _pairs_of_run(folder)
    if (folder / PAIRS_FILE).is_file():
        return [folder / PAIRS_FILE]
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES and path.name[0] not in "._")
    names = collections.Counter(_NUMBERS.sub("", path.name) for path in found)
    if len(names) > 1:
        listed = ", ".join(path.name for path in found[:6]) + (", …" if len(found) > 6 else "")
        raise DataError(
            f"{folder} holds files of several names ({listed}), and one data file is one split; name the file, or its shards as "
            f"{folder / 'train-*.parquet'}"
        )
    if not found:
        raise DataError(f"{folder} holds no data file; give {KINDS}")
    return found


def _saved_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The Arrow files of a data set that `datasets` saved; others in its folder are caches."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} was saved with a selection of rows; save dataset.flatten_indices() instead")
    files = [folder / file["filename"] for file in state.get("_data_files", [])]
    gone = [file for file in files if not file.is_file()]
    if gone or not files:
        raise DataError(
            f"{folder} is not complete: {'no file ' + str(gone[0]) if gone else 'state.json names no file'}; save it again"
        )
    return files


def _pairs_of_run(run: pathlib.Path) -> list[pathlib.Path]:
    found = sorted(run.glob(f"rounds/*/pairs/{PAIRS_FILE}"), key=lambda path: (len(path.parts[-3]), path.parts[-3]))
    if len(found) == 1:
        return found
    if not found:
        raise DataError(f"{run} is a run without pairs yet; run `vidalign rollout` on it first")
    raise DataError(f"{run} is a run of {len(found)} rounds; name the pairs of one, such as {found[-1].parent}")


def _json(path: pathlib.Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); save the data set again") from error
