"""`vidalign export RUN`: the aligned model of a run as a folder of its own, or on the hub: merged weights, or the adapter alone."""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import tempfile
from typing import Any

from vidalign import mirror
from vidalign.errors import ConfigError, DataError
from vidalign.stored import shown

ADAPTER = "adapter"  # in a model's folder, where train.lora.export=both


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "copy the aligned model of a run to a folder, or push it to a hub"
    command = commands.add_parser("export", help=text, description=text)
    command.add_argument("run_dir", metavar="RUN", help="the run's folder")
    command.add_argument("--out", metavar="FOLDER", help="the folder to make; it must not be there yet")
    command.add_argument("--push", metavar="OWNER/NAME", help="the repository of the hub that takes it, made if need be")
    command.add_argument("--public", action="store_true", help="with --push: make a new repository public")
    command.add_argument(
        "--what",
        choices=("merged", "adapter"),
        default="merged",
        help="complete weights (default), or the LoRA adapter alone",
    )
    command.add_argument(
        "--round", type=int, metavar="N", help="the round whose model it is (default: the last that has one)"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if bool(arguments.out) == bool(arguments.push):
        raise ConfigError("vidalign export writes to --out FOLDER or to --push OWNER/NAME; give one of the two")
    if arguments.public and not arguments.push:
        raise ConfigError("--public belongs to --push; leave it out")
    source = model_of(pathlib.Path(mirror.opened(arguments.run_dir)), arguments.what, arguments.round)
    mirror.refresh(source, everything=True)
    if arguments.out:
        copy(source, pathlib.Path(arguments.out))
        print(f"{arguments.what} of {shown(source)} is in {arguments.out}")
    else:
        print(f"pushed to {push(source, arguments.push, private=not arguments.public)}")
    return 0


def model_of(run: pathlib.Path, what: str = "merged", index: int | None = None) -> pathlib.Path:
    """The folder of an exported model of a run, or of its adapter.

    Raises:
        DataError: the round has none, or none was exported as an adapter.
    """
    from vidalign.model.checkpoint import read_card

    numbers = sorted(int(path.parent.name) for path in run.glob("rounds/*/model") if path.parent.name.isdigit())
    finished = [number for number in numbers if read_card(run / "rounds" / str(number) / "model") is not None]
    if not finished or (index is not None and index not in finished):
        of = f"of round {index}" if index is not None else "yet"
        has = f"; there are those of {', '.join(map(str, finished))}" if finished else ""
        raise DataError(f"{run} has no exported model {of}{has}; run `vidalign align` or `vidalign train` on it first")
    model = run / "rounds" / str(finished[-1] if index is None else index) / "model"
    if what == "merged":
        return model
    if not (model / ADAPTER / "adapter_config.json").is_file():
        raise DataError(
            f"{model} holds complete weights and no adapter; train with train.lora and train.lora.export=both to keep it, or export "
            "what is merged"
        )
    return model / ADAPTER


def copy(source: pathlib.Path, out: pathlib.Path) -> None:
    """Copy a model so that `out` is there once all of it is. Raises `ConfigError` where `out` is there already."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out {out} is there already; name a folder that is not, or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _copy_into(source, draft)
        draft.chmod(0o755)
        draft.rename(out)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _copy_into(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Without the adapter beside merged weights: readers of a folder with both take the one or the other."""
    for place, folders, names in os.walk(source, followlinks=True):
        folders[:] = [name for name in folders if name != ADAPTER]
        there = folder / pathlib.Path(place).relative_to(source)
        there.mkdir(exist_ok=True)
        for name in names:  # one by one: `copytree` goes on where a disk is full, and its error is no error of a file
            shutil.copy2(pathlib.Path(place) / name, there / name)


def push(source: pathlib.Path, name: str, *, private: bool) -> str:
    """Push a model to a repository of the hub; returns its url. Raises `DataError` where the hub does not take it."""
    import huggingface_hub
    import huggingface_hub.errors

    if name.count("/") != 1 or not all(name.split("/")):
        raise ConfigError(f"--push {name} is no repository; write OWNER/NAME")
    try:
        url = huggingface_hub.create_repo(name, private=private, exist_ok=True)
        huggingface_hub.upload_folder(repo_id=name, folder_path=str(source), ignore_patterns=[f"{ADAPTER}/*"])
        return str(url)
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"the hub does not take {name} ({reason}); log in with `hf auth login` where it can be reached, or write a folder "
            "with --out"
        ) from error
