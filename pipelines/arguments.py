"""How the command line is read: errors of one line, only the arguments of the command that is asked for, options in their place.

Importing this module and asking for help imports no configuration, so that a shell has its answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vidalign.errors import ConfigError

# What of a configuration a command does not read: where it is set for that command alone, it would make no difference.
UNUSED = {
    "rollout": ("objective", "train", "serve", "evaluate"),
    "train": ("recipe", "rollout", "serve", "evaluate"),
    "evaluate": ("objective", "train"),
    "report": ("model", "data", "video", "recipe", "rollout", "objective", "train", "serve", "evaluate", "cluster"),
}
# The cluster is planned for all stages by every command that runs one.
PLANNED = (
    *("train.num_workers", "train.use_gpu", "rollout.num_engines", "rollout.gpus_per_engine"),
    *("serve.min_replicas", "serve.max_replicas", "serve.gpus_per_replica"),
)
USED_THOUGH = {  # by a command that does not use the rest of the section
    "rollout": (*PLANNED, "train.float32_head"),
    "train": (*PLANNED, "recipe.plain_prompt", "recipe.name"),
    "evaluate": PLANNED,
}


def one_line(message: object) -> str:
    """A message as one line without control characters, whatever a file's name or a value in it holds."""
    return "".join(character if character.isprintable() else " " for character in " ".join(str(message).split()))


EVERY = "*"  # asks `add_parsers` for all commands


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and with exit code 2, as every other error of the command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vidalign: error: {one_line(message)}; see `{self.prog} --help`\n")


def add_parsers(commands: Any, elsewhere: Mapping[str, tuple[str, str]], asked: str | None) -> None:
    """Add the commands that have a module of their own: name → (module with `add_parser(commands)`, line of help).

    Only the module of the command that is asked for is imported.
    """
    for name, (module, text) in elsewhere.items():
        if asked in (name, EVERY):
            importlib.import_module(module).add_parser(commands)
        else:
            commands.add_parser(name, help=text, add_help=False)


def command_of(argv: Sequence[str]) -> str | None:
    """The command that is asked for: the first argument that is no option."""
    return next((item for item in argv if not item.startswith("-")), None)


def refuse_unknown(parser: Parser, rest: Sequence[str], arguments: argparse.Namespace) -> None:
    """End with an error for arguments that no parser took, unless all of them are overrides of a command that takes overrides."""
    dashed = [item for item in rest if item.startswith("-")]
    if hasattr(arguments, "overrides") and (meant := _meant(dashed, rest)):
        parser.error(meant)
    if dashed or any("=" not in item for item in rest) or (rest and not hasattr(arguments, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")


def _meant(dashed: Sequence[str], rest: Sequence[str]) -> str:
    """How an option of the configuration that was written with dashes is written, or ""."""
    from vidalign.config.explaining import all_keys, find_keys
    from vidalign.config.run import RunConfig

    for item in dashed:
        name, has_value, value = item.lstrip("-").partition("=")
        keys = find_keys(RunConfig, name)
        if not keys:
            last, leaves = name.replace("-", "_").rpartition(".")[2], [key.rpartition(".")[2] for key in all_keys(RunConfig)]
            keys = [
                key
                for near in difflib.get_close_matches(last, leaves, n=1, cutoff=0.8)
                for key in find_keys(RunConfig, near)
            ]
        if not keys:
            continue
        after = list(rest).index(item) + 1
        if not has_value:
            value = rest[after] if after < len(rest) and not rest[after].startswith("--") else "VALUE"
        shown = " or ".join(f"{key}={value}" for key in keys[:3])
        return f"{item.partition('=')[0]} is no option; what the configuration holds is written without dashes: {shown}"
    return ""


def refuse_unused(command: str, overrides: Sequence[str]) -> None:
    """Raises `ConfigError` for an override of what this command does not read, which would be accepted and make no difference."""
    for override in overrides:
        key = override.partition("=")[0]
        section = key.partition(".")[0]
        if section in UNUSED.get(command, ()) and key not in USED_THOUGH.get(command, ()):
            raise ConfigError(
                f"override {override[:80]!r}: vidalign {command} does not use {section}; leave it out, or write it in the "
                "configuration, which is for all commands"
            )
