"""Data sets of the Hugging Face hub by name: hf:org/name[@revision][:config][/split]. Needs the package `datasets`."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator
from typing import Any

from vidalign.data.lines import Located
from vidalign.data.tables import plain_rows
from vidalign.errors import DataError

PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<path>[\w.-]+/[\w.-]+)(@(?P<revision>[\w.-]+))?(:(?P<config>[\w.-]+))?(/(?P<split>[\w.-]+))?")


def is_hub_name(name: str) -> bool:
    """Whether a name asks for a data set of the hub."""
    return name.startswith(PREFIX)


def read_hub(name: str) -> Iterator[Located]:
    """The rows of one split of a hub data set, each with its place "name: row n". Media columns are not decoded.

    Without a config or split in the name, the data set must have only one.

    Raises:
        DataError: the name has another form; `datasets` is not installed; the hub cannot be reached and its cache has not got the
            data set; several configs or splits to choose from.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise DataError(
            f"{name!r} does not have the form hf:org/name[@revision][:config][/split]; write it like hf:me/videos/train"
        )
    path = found["path"]
    if pathlib.Path(path).exists():
        raise DataError(
            f"{name} names a data set of the hub, but there is a local {path} here, which `datasets` would read; name the folder "
            f"itself, ./{path}, or work in another folder"
        )
    data = _load(name, path, found["config"], found["split"], found["revision"])
    number = 0
    for batch in data.with_format("arrow").iter(batch_size=256):
        for fields in plain_rows(batch):
            number += 1
            yield f"{name}: row {number}", fields


def _load(name: str, path: str, config: str | None, split: str | None, revision: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name} needs the package datasets, which cannot be imported ({error}); pip install 'datasets>=4', or save the data set "
            "to a folder elsewhere and name that"
        ) from error
    try:
        loaded = datasets.load_dataset(path, config, split=split, revision=revision)
    except Exception as error:  # the hub's client raises errors of many kinds; all mean that the rows cannot be had
        raise DataError(f"{name} cannot be read from the hub ({_reason(error)}); {_way_out(path)}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if len(loaded) != 1:
            splits = ", ".join(loaded)
            raise DataError(f"{name} has the splits {splits}; name one of them, such as {name}/{next(iter(loaded))}")
        loaded = next(iter(loaded.values()))
    return loaded


def _reason(error: BaseException) -> str:
    """The error and the one that it began with."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    return _said(error) if root is error else f"{_said(error)}, because of {_said(root)}"


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"


def _way_out(path: str) -> str:
    return (
        "check the name and your access to it (`hf auth login`); where no hub can be reached, run "
        f"datasets.load_dataset({path!r}, split=…).save_to_disk(FOLDER) where one can, copy FOLDER, and name it instead"
    )
