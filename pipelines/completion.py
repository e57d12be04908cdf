"""`vidalign completion SHELL`: a script with which bash, zsh or fish complete commands, options and the configuration's keys."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign.config.explaining import all_keys
from vidalign.config.run import RunConfig

SHELLS = ("bash", "zsh", "fish")
HOW = {
    "bash": 'eval "$(vidalign completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(vidalign completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "vidalign completion fish > ~/.config/fish/completions/vidalign.fish",
}


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "print what completes commands, options and keys in a shell"
    command = commands.add_parser("completion", help=text, description=f"{text}: {'; '.join(HOW.values())}")
    command.add_argument("shell", choices=SHELLS)
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from pipelines.cli import whole_parser

    print(script(arguments.shell, words(whole_parser())))
    return 0


def words(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """Command → its options, subcommands and, where it takes overrides, keys with "="."""
    found = {}
    for name, command in _subparsers(parser).items():
        inner = _subparsers(command)
        options = [*_options(command), *inner, *(option for each in inner.values() for option in _options(each))]
        takes_keys = any(action.dest == "overrides" for action in command._actions)
        found[name] = [*dict.fromkeys(options), *([f"{key}=" for key in all_keys(RunConfig)] if takes_keys else [])]
    return found


def script(shell: str, found: Mapping[str, Sequence[str]]) -> str:
    """The script of a shell."""
    if shell == "fish":
        lines = ["complete -c vidalign -n __fish_use_subcommand -f -a " + repr(" ".join(found))]
        lines += [
            f"complete -c vidalign -n '__fish_seen_subcommand_from {name}' -a {' '.join(each)!r}"
            for name, each in found.items()
        ]
        return "\n".join(lines)
    cases = "\n".join(f"    {name}) words={' '.join(each)!r} ;;" for name, each in found.items())
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return f"""{start}_vidalign() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  [ "$COMP_CWORD" -eq 1 ] && words={" ".join(found)!r}
  COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
  case "${{COMPREPLY[0]}}" in *=) compopt -o nospace 2>/dev/null ;; esac
}}
complete -o filenames -F _vidalign vidalign"""


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    groups = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(groups[0]) if groups else {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
