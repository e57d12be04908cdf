"""The arguments of `vidalign evaluate` that concern suites, checked together, without importing what asks."""

from __future__ import annotations

import argparse

from vidalign.errors import ConfigError

OPTIONS = {
    "data": "--data",
    "task": "--task",
    "subtitles": "--subtitles",
    "endpoint": "--endpoint",
    "model": "--model",
    "media_root": "--media-root",
    "out": "--out",
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the target and the options of suites to the command."""
    command.add_argument(
        "config",
        nargs="?",
        help="YAML file; with --suite also a run folder or a checkpoint folder, or nothing with --endpoint",
    )
    options = command.add_argument_group("published suites (docs/evaluation.md)")
    options.add_argument("--suite", metavar="NAME", help="ask the questions of this suite, or of package.module:attribute")
    options.add_argument("--data", metavar="FOLDER", help="the suite's rows and videos, as they are published")
    options.add_argument(
        "--task", action="append", default=[], metavar="NAME", help="only this part of the suite; may be repeated"
    )
    options.add_argument("--subtitles", action="store_true", help="with the suite's subtitles")
    options.add_argument("--endpoint", metavar="URL", help="ask a running OpenAI endpoint, such as http://127.0.0.1:8000/v1")
    options.add_argument(
        "--model", action="append", default=[], metavar="ID", help="a model of --endpoint; may be repeated (default: all)"
    )
    options.add_argument("--media-root", metavar="FOLDER", help="the folder whose files --endpoint reads; others are sent")
    options.add_argument("--out", metavar="FOLDER", help="where results go (default: the run's folder, or runs/suites)")


def without_suite(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments of an evaluation on the run's own data. Raises `ConfigError` for options that only a suite has."""
    given = [option for name, option in OPTIONS.items() if getattr(arguments, name)]
    if given:
        raise ConfigError(f"{given[0]} is an option of suites; name one with --suite")
    if not arguments.config:
        raise ConfigError("vidalign evaluate needs a config file, such as examples/shapes/align.yaml, or --suite and --data")
    return arguments


def run_command(arguments: argparse.Namespace) -> int:
    """`vidalign evaluate --suite`. Raises `VidalignError` for what the user can fix."""
    if not arguments.data:
        raise ConfigError("--suite needs --data FOLDER, the folder with the suite's rows and videos")
    if arguments.on:
        raise ConfigError(
            f"--on={arguments.on} plans a run's own evaluation; a suite is planned for this machine: leave it out"
        )
    overrides = list(arguments.overrides)
    target = arguments.config
    if target and "=" in target and arguments.endpoint:  # the first override, where no target is given
        target, overrides = None, [target, *overrides]
    if bool(target) == bool(arguments.endpoint):
        raise ConfigError(
            "a suite is asked of a run, a config's run or a checkpoint folder, or of --endpoint URL: give one of the two"
        )
    for name in ("model", "media_root"):
        if getattr(arguments, name) and not arguments.endpoint:
            way_out = "leave it out" if name == "model" else "set serve.media_root=FOLDER"
            raise ConfigError(f"{OPTIONS[name]} belongs to --endpoint; {way_out}")
    from pipelines.suites import models
    from pipelines.suites.run import run

    if arguments.endpoint:
        asked = models.of_endpoint(
            arguments.endpoint, arguments.model, overrides, media_root=arguments.media_root, out=arguments.out
        )
    else:
        asked = models.of_target(target, overrides, out=arguments.out)
    run(
        arguments.suite,
        arguments.data,
        asked,
        tasks=arguments.task,
        subtitles=arguments.subtitles,
        dry_run=arguments.dry_run,
        verbose=arguments.verbose,
    )
    return 0
