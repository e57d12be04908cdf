"""`vidalign clean RUN`: what of a run can be made again, how much room it takes, and its removal.

What a finished stage needs no more goes: checkpoints, parts, noise, and what frozen models said. With `--frames`, the decoded frames
of a run whose stages are all finished go too; its next report has no pictures. Models, pairs, answers, reports and manifests stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import shutil
from typing import Any

from cluster.lease import check_free
from vidalign.errors import ConfigError
from vidalign.storage import is_uri

MANIFEST = "manifest.json"
# Below rounds/<index>/: stage → (folder in it that it needs no more once it is finished, what that is).
LEFT_OVER = {
    "train": ("ray", "checkpoints of training"),
    "value": ("ray", "checkpoints of a value model's training"),
    "responses": ("parts", "parts of the responses table"),
    "eval": ("noise", "videos of noise"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Removable:
    """A folder of a run that can be made again, and how many bytes it holds."""

    folder: pathlib.Path
    what: str
    size: int


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "say what of a run can be made again and how much room it takes; remove it with --yes"
    command = commands.add_parser("clean", help=text, description=text)
    command.add_argument("run_dir", metavar="RUN", help="the run's folder")
    command.add_argument("--frames", action="store_true", help="also decoded frames, once every stage is finished")
    command.add_argument("--yes", action="store_true", help="remove it")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if is_uri(arguments.run_dir):
        raise ConfigError(
            f"vidalign clean removes what lies on a disk, and {arguments.run_dir} is in a store; remove there what it would: "
            "rounds/*/train/ray, rounds/*/responses/parts and cache of a run that is finished, and frames"
        )
    run = pathlib.Path(arguments.run_dir)
    found = removable(run, frames=arguments.frames)
    for each in found:
        print(f"{shown(each.size):>10}  {each.folder}  ({each.what})")
    total = shown(sum(each.size for each in found))
    if not found:
        print(f"{run} holds nothing that a finished stage does not need")
    elif arguments.yes:
        check_free(run.absolute())
        for each in found:
            shutil.rmtree(each.folder)
        print(f"{total} freed")
    else:
        print(f"{total} can be freed; run the same command with --yes to remove it")
    return 0


def removable(run: pathlib.Path, *, frames: bool = False) -> list[Removable]:
    """What can go without changing a result or having a finished stage made again.

    Raises:
        ConfigError: the folder is no run; or `frames` is set and a stage is not finished.
    """
    if not (run / "rounds").is_dir():
        what = "has no rounds" if run.is_dir() else "is not a folder"
        raise ConfigError(f"vidalign clean takes the folder of a run, but {run} {what}; give its run_dir")
    places = [
        (stage / part, what)
        for name, (part, what) in LEFT_OVER.items()
        for stage in sorted(run.glob(f"rounds/*/{name}"))
        if (stage / MANIFEST).is_file()
    ]
    open_stages = [
        path.parent for path in sorted(run.glob("rounds/*/*/begun.json")) if not (path.parent / MANIFEST).is_file()
    ]
    trained = all(
        any((path.parent / name / MANIFEST).is_file() for name in ("train", "value"))
        for path in run.glob("rounds/*/responses")
    )
    if not open_stages and trained:
        places.append((run / "cache", "features and reference outputs of frozen models"))
    if frames:
        if open_stages or not trained:
            raise ConfigError(
                f"--frames is for runs that are finished, and {open_stages[0] if open_stages else 'a round'} is not; finish it with "
                "`vidalign align`, or leave --frames out"
            )
        places.append((run / "frames", "decoded frames"))
    return [
        Removable(folder=folder, what=what, size=_size(folder))
        for folder, what in places
        if folder.is_dir() and not folder.is_symlink()
    ]


def shown(size: int) -> str:
    """Bytes in the unit that suits them."""
    number, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number, units = number / 1024, units[1:]
    return f"{number:,.0f} {units[0]}" if units[0] == "bytes" else f"{number:,.1f} {units[0]}"


def _size(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
