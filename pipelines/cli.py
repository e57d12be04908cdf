"""The `vidalign` command. Parses arguments and calls the pipelines; an error that the user can fix is one sentence, exit code 2."""

from __future__ import annotations

import argparse
import errno
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from cluster import interrupts
from pipelines import data
from pipelines.suites import command as suites
from vidalign import __version__
from vidalign.config.loading import load_config
from vidalign.config.run import RunConfig
from vidalign.errors import ClusterError, ConfigError, VidalignError
from vidalign.files import RunFolder

BENCHES = {
    "decode": "decode",
    "rollout": "rollout",
    "engine": "rollout_engine",
    "train": "train_step",
    "gpu": "gpu",
    "prefetch": "prefetch",
    "serve": "serve",
    "growth": "growth",
    "long": "long_videos",
    "memory": "driver_memory",
    "start": "start",
    "chaos": "chaos",
}

# Of a disk that cannot be written, wherever that shows.
FULL = {
    errno.ENOSPC: "free some space there and run the same command again: it continues",
    errno.EDQUOT: "ask for more, or free some space there, and run the same command again: it continues",
    errno.EROFS: "mount it for writing, or choose another folder, and run the same command again",
}

EPILOG = """\
examples:
  vidalign align examples/shapes/align.yaml                     the whole run, or the rest of one that was stopped
  vidalign align my.yaml train.learning_rate=1e-6 seed=3        with overrides, section.key=value
  vidalign align my.yaml --dry-run                              check config, data, model and resources; start nothing
  vidalign evaluate runs/shapes --suite mvbench --data MVBench  a published suite, base beside aligned
  vidalign align my.yaml --dry-run --on 8x80                    the same for a node with 8 GPUs of 80 GB, from any machine
  vidalign serve runs/shapes                                    base and aligned behind an OpenAI endpoint
  vidalign data import --from trl pairs.jsonl --out mine.jsonl  other projects' preference data; then data validate
  ray job submit --working-dir . -- vidalign align my.yaml      the same on a cluster
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the process's exit code."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)  # overrides may stand before and after options
    if any(item.startswith("-") or "=" not in item for item in rest) or (not hasattr(arguments, "overrides") and rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    try:
        with interrupts.handled():
            return arguments.run(arguments)
    except VidalignError as error:
        print(f"vidalign: error: {error}", file=sys.stderr)
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
        print(f"vidalign: error: {cause}", file=sys.stderr)
        return 2


def fixable_cause(error: BaseException) -> VidalignError | None:
    """The `VidalignError` that a Ray actor raised, dug out of the errors Ray wrapped around it; or one for a disk that is full."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or id(current) in seen:
            continue
        if isinstance(current, VidalignError):
            return current
        if isinstance(current, OSError) and current.errno in FULL:
            place = f"{current.filename}" if current.filename else "a disk"
            return ClusterError(f"{place} cannot be written: {current.strerror}; {FULL[current.errno]}")
        seen.add(id(current))
        queue += [getattr(current, "cause", None), current.__cause__, current.__context__]
        workers = getattr(current, "worker_failures", None)  # Ray Train: {rank: error}
        if isinstance(workers, dict):
            queue += [failure for failure in workers.values() if isinstance(failure, BaseException)]
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
        ("report", "write the report of what a run has so far"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        if name == "evaluate":
            suites.add_arguments(command)
        else:
            command.add_argument("config", help="YAML file; see examples/shapes/align.yaml")
        command.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the config")
        command.add_argument(
            "--dry-run", action="store_true", help="check config, data, model and resources; start no engine"
        )
        command.add_argument(
            "--on", metavar="GPUSxGB", help="with --dry-run: plan for a cluster such as 8x80 or 2x8x80 (nodes x GPUs x GB)"
        )
        command.add_argument("--verbose", action="store_true", help="show what Ray and its workers print")
        command.set_defaults(run=_run_evaluate if name == "evaluate" else _run_stages)
    command = commands.add_parser("serve", help="serve a model folder, or a run's base and aligned models")
    command.add_argument("target", help="a run folder or a model folder")
    command.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides, for example serve.port=8080")
    command.add_argument("--verbose", action="store_true", help="show what Ray and its workers print")
    command.set_defaults(run=_run_serve)
    data.add_parser(commands)
    command = commands.add_parser("bench", help="time a part of this against its alternatives; in a checkout of the project")
    command.add_argument("name", choices=BENCHES)
    command.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own; --help lists them")
    command.set_defaults(run=_run_bench)
    command = commands.add_parser("doctor", help="what is installed, what fits, what is wrong and how to fix it")
    command.set_defaults(run=_run_doctor)
    return parser


def _run_stages(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    if arguments.on and not arguments.dry_run:
        raise ConfigError(f"--on={arguments.on} describes a cluster for --dry-run; add --dry-run, or leave it out")
    from pipelines import align

    stages = align.STAGES if arguments.command == "align" else (arguments.command,)
    if arguments.dry_run:
        return _dry_run(config, stages, arguments.on)
    summary = align.align(config, stages, verbose=arguments.verbose)
    print(_ending(summary, config.run_dir))
    return 0


def _run_evaluate(arguments: argparse.Namespace) -> int:
    return suites.run_command(arguments) if arguments.suite else _run_stages(suites.without_suite(arguments))


def _ending(summary: dict[str, Any], run_dir: str) -> str:
    """What the console shows at the end: base against aligned, the report and the command that serves the model."""
    from pipelines.report_tables import summary_table

    report = RunFolder.open(run_dir).report / "index.html"
    return "\n".join([summary_table(summary), "", f"report   {report}", f"serve    vidalign serve {run_dir}"])


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
    module = BENCHES[arguments.name]
    if not pathlib.Path("bench", f"{module}.py").is_file():
        raise ConfigError(
            f"vidalign bench needs the project's own scripts, and there is no bench/{module}.py here ({pathlib.Path.cwd()}); run it "
            "in the root of a checkout"
        )
    return subprocess.call([sys.executable, "-m", f"bench.{module}", *arguments.arguments])


def _run_doctor(arguments: argparse.Namespace) -> int:
    from cluster import doctor

    findings = doctor.diagnose()
    print(doctor.render(findings))
    return 0 if doctor.is_healthy(findings) else 1


if __name__ == "__main__":
    sys.exit(main())
