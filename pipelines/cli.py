"""The `vidalign` command. Parses arguments and calls the pipelines; an error that the user can fix is one sentence, exit code 2."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # python -m pipelines.cli: what is imported below must be vidalign's own
    from vidalign.__main__ import main as checked_main

    sys.exit(checked_main())

import argparse
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster import console, interrupts
from cluster.proxies import reach_directly
from pipelines import promote
from pipelines.arguments import EVERY, Parser, add_parsers, command_of, one_line, refuse_unknown, refuse_unused
from pipelines.faults import fixable_cause
from pipelines.suites import command as suites
from vidalign import __version__
from vidalign.errors import ConfigError, VidalignError

if TYPE_CHECKING:
    from vidalign.config.run import RunConfig

# Commands with a module of their own, which is imported when its command is asked for: name → (module, line of help).
ELSEWHERE = {
    "report": ("pipelines.reporting", "write the report of what a run has so far; of several runs, compare them"),
    "watch": ("pipelines.watching", "show a run while it goes on, on a page of this machine alone"),
    "init": ("pipelines.starting", "write a commented configuration for a model and a data file"),
    "chat": ("pipelines.chatting", "ask a model about a video in the terminal"),
    "export": ("pipelines.exporting", "copy the aligned model of a run to a folder, or push it to a hub"),
    "clean": ("pipelines.cleaning", "say what of a run can be made again and how much room it takes; remove it"),
    "keys": ("pipelines.keys", "make a key with which an endpoint may be asked"),
    "data": ("pipelines.data", "import, export, convert and check data files"),
    "options": ("pipelines.options", "say what options mean, with their values, defaults and units"),
    "completion": ("pipelines.completion", "print what completes commands, options and keys in a shell"),
}
STAGES = ("rollout", "train", "evaluate", "report")
BENCHES = {
    "decode": "decode",
    "rollout": "rollout",
    "engine": "rollout_engine",
    "train": "train_step",
    "gpu": "gpu",
    "prefetch": "prefetch",
    "serve": "serve",
    "costs": "serve_costs",
    "load": "serve_load",
    "growth": "growth",
    "long": "long_videos",
    "memory": "driver_memory",
    "start": "start",
    "overlap": "overlap",
    "chaos": "chaos",
    "needles": "needles",
    "reagent": "reagent",
    "nodes": "nodes",
}

EPILOG = """\
examples:
  vidalign align examples/shapes/align.yaml                     the whole run, or the rest of one that was stopped
  vidalign align my.yaml train.learning_rate=1e-6 seed=3        with overrides, section.key=value
  vidalign align my.yaml --dry-run                              check config, data, model and resources; start nothing
  vidalign evaluate runs/shapes --suite mvbench --data MVBench  a published suite, base beside aligned
  vidalign align my.yaml --dry-run --on 8x80                    the same for a node with 8 GPUs of 80 GB, from any machine
  vidalign serve runs/shapes                                    base and aligned behind an OpenAI endpoint
  vidalign promote runs/shapes:1 --to 127.0.0.1:6379            another round answers as aligned, without a stop
  vidalign data import --from trl pairs.jsonl --out mine.jsonl  other projects' preference data; then data validate
  ray job submit --working-dir . -- vidalign align my.yaml      the same on a cluster
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the process's exit code."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(command_of(given))
    arguments, rest = parser.parse_known_args(given)  # overrides may stand before and after options
    refuse_unknown(parser, rest, arguments)
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    if not getattr(arguments, "verbose", False):
        console.quiet_libraries()
    try:
        _check_folder()
        reach_directly()
        with interrupts.handled():
            return arguments.run(arguments)
    except VidalignError as error:
        print(f"vidalign: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(interrupts.STOPPED, file=sys.stderr)
        exit_code = error.exit_code if isinstance(error, interrupts.Interrupted) else 130
        if argv is None:  # this process is the command's own
            interrupts.leave(exit_code)
        return exit_code
    except Exception as error:
        cause = fixable_cause(error)
        if cause is None:
            raise
        print(f"vidalign: error: {one_line(cause)}", file=sys.stderr)
        return 2


def _check_folder() -> None:
    """Raises `ConfigError` in a folder that was removed: MKL would end the process there, and no relative path means anything."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was removed; change to one that is there, and run the command again") from None


def _parser(asked: str | None) -> Parser:
    parser = Parser(
        prog="vidalign",
        description="Align a video language model with preferences it makes itself.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vidalign {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("align", "rollout, train, evaluate and report, or what is left of them"),
        ("rollout", "decode videos, generate responses, make preference pairs"),
        ("train", "train on the pairs of a rollout and export the policy"),
        ("evaluate", "serve base and aligned and ask both the held-out questions"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name == "evaluate":
            suites.add_arguments(command)
        else:
            command.add_argument("config", help="YAML file; see examples/shapes/align.yaml")
        _add_overrides(command)
        command.add_argument(
            "--dry-run", action="store_true", help="check config, data, model and resources; start no engine"
        )
        command.add_argument(
            "--on", metavar="GPUSxGB", help="with --dry-run: plan for a cluster such as 8x80 or 2x8x80 (nodes x GPUs x GB)"
        )
        command.set_defaults(run=_run_evaluate if name == "evaluate" else _run_stages)
    command = commands.add_parser("serve", help="serve a model folder, or a run's base and aligned models")
    command.add_argument("target", help="a run folder or a model folder")
    _add_overrides(command, "overrides, for example serve.port=8080")
    command.set_defaults(run=_run_serve)
    add_parsers(commands, ELSEWHERE, asked)
    promote.add_parser(commands)
    command = commands.add_parser("bench", help="time a part of this against its alternatives; in a checkout of the project")
    command.add_argument("name", choices=BENCHES)
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own; --help lists them")
    command.set_defaults(run=_run_bench)
    command = commands.add_parser("doctor", help="what is installed, what fits, what is wrong and how to fix it")
    command.set_defaults(run=_run_doctor)
    return parser


def whole_parser() -> Parser:
    """The parser with the arguments of every command."""
    return _parser(EVERY)


def _add_overrides(command: argparse.ArgumentParser, text: str = "overrides of the config") -> None:
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help=text)
    command.add_argument("--verbose", action="store_true", help="show what Ray and its workers print")


def _run_stages(arguments: argparse.Namespace) -> int:
    from vidalign.config.loading import load_config

    refuse_unused(arguments.command, arguments.overrides)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.on and not arguments.dry_run:
        raise ConfigError(f"--on={arguments.on} describes a cluster for --dry-run; add --dry-run, or leave it out")
    stages = STAGES if arguments.command == "align" else (arguments.command,)
    if arguments.dry_run:
        return _dry_run(config, stages, arguments.on)
    from pipelines import finished
    from pipelines.ending import ending

    summary = finished.summary_if_finished(config, stages)
    if summary is not None:
        print("nothing is left to do: every stage is finished, and nothing has changed since", file=sys.stderr)
    else:
        from pipelines import align

        summary = align.align(config, stages, verbose=arguments.verbose)
    print(ending(summary, config.run_dir))
    return 0


def _run_evaluate(arguments: argparse.Namespace) -> int:
    return suites.run_command(arguments) if arguments.suite else _run_stages(suites.without_suite(arguments))


def _dry_run(config: RunConfig, stages: Sequence[str], on: str | None) -> int:
    from cluster.described import described
    from pipelines import check

    print(check.render(check.check(config, stages, machines=described(on) if on else None)))
    return 0


def _run_serve(arguments: argparse.Namespace) -> int:
    from pipelines import serve

    serve.run(arguments.target, arguments.overrides, verbose=arguments.verbose)
    return 0


def _run_bench(arguments: argparse.Namespace) -> int:
    import subprocess

    module = BENCHES[arguments.name]
    if not pathlib.Path("bench", f"{module}.py").is_file():
        raise ConfigError(
            f"vidalign bench needs the project's own scripts, and there is no bench/{module}.py here ({pathlib.Path.cwd()}); run it "
            "in the root of a checkout"
        )
    return subprocess.call([sys.executable, "-m", f"bench.{module}", *arguments.arguments])


def _run_doctor(arguments: argparse.Namespace) -> int:
    from cluster import doctor

    found = []
    for finding in doctor.findings():
        found.append(finding)
        print(doctor.line(finding), flush=True)
    print(f"\n{doctor.verdict(found)}")
    return 0 if doctor.is_healthy(found) else 1
