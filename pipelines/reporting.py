"""`vidalign report RUN`: the report of one run; `vidalign report A B C`: several runs compared."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from pipelines.arguments import refuse_unused
from pipelines.ending import ending
from vidalign import mirror
from vidalign.errors import ConfigError
from vidalign.stored import shown


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "write the report of what a run has so far; of several runs, compare them"
    command = commands.add_parser("report", help=text, description=text)
    command.add_argument("config", help="a run's folder, or its YAML file")
    command.add_argument(
        "overrides", nargs="*", metavar="RUN|key=value", help="more runs to compare with, or overrides of one"
    )
    command.add_argument(
        "--out", metavar="FILE", help="where the comparison of several runs goes (default: comparison.html)"
    )
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    others = [name for name in arguments.overrides if "=" not in name]
    overrides = [override for override in arguments.overrides if "=" in override]
    if others:
        if overrides:
            raise ConfigError(f"override {overrides[0]!r}: runs are compared as they are; leave it out")
        from pipelines.comparing import compare

        out = pathlib.Path(arguments.out or "comparison.html")
        print(f"{compare([arguments.config, *others], out)}\n\nreport   {out.absolute()}")
        return 0
    if arguments.out:
        raise ConfigError("--out is where a comparison of several runs goes; name more than one run, or leave it out")
    from pipelines import align
    from vidalign.config.loading import load_config

    refuse_unused("report", overrides)
    folder = pathlib.Path(mirror.opened(arguments.config))
    if (folder / "config.yaml").is_file():  # wherever the run was made
        place = shown(folder.absolute())
        config = load_config(folder / "config.yaml", [*overrides, f"run_dir={json.dumps(place)}"])
    else:
        config = load_config(folder, overrides)
    print(ending(align.align(config, ("report",)), config.run_dir))
    return 0
