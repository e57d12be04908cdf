"""The commands `promote`, `rollback` and `versions` of `vidalign`."""

from __future__ import annotations

import argparse
from typing import Any

TO = "host:port of the endpoint's Ray cluster (`vidalign serve` prints it), or the endpoint's http address on this machine"


def add_parser(commands: Any) -> None:
    """Add the commands to the parsers of `vidalign`."""
    promote = commands.add_parser("promote", help="let another version of a policy answer, without stopping the endpoint")
    promote.add_argument(
        "run_folder", metavar="RUN[:ROUND]", help="a run folder, and which round's policy (default: the last)"
    )
    promote.add_argument("--canary", metavar="SHARE", help="only for a share of the users, as in 10%% or 0.1")
    promote.add_argument("--shadow", action="store_true", help="only copies of requests, whose answers nobody gets")
    promote.add_argument(
        "--max-errors", metavar="SHARE", help="on trial: take it back when more of its requests fail (default: 5%%)"
    )
    promote.add_argument(
        "--max-slowdown",
        metavar="TIMES",
        type=float,
        help="on trial: take it back when its requests take so many times as long as those of the promoted version (default: 2)",
    )
    promote.add_argument(
        "--min-requests", metavar="N", type=int, help="on trial: judge it once it has answered so many (default: 20)"
    )
    promote.set_defaults(run=_promote)
    rollback = commands.add_parser("rollback", help="take back what is on trial, or go back to the version before")
    rollback.set_defaults(run=_rollback)
    versions = commands.add_parser("versions", help="which versions an endpoint has, and how they do")
    versions.set_defaults(run=_versions)
    for command in (promote, rollback, versions):
        command.add_argument("--to", required=True, metavar="ENDPOINT", help=TO)
        command.add_argument("--verbose", action="store_true", help="show what Ray and its workers print")


def _promote(arguments: argparse.Namespace) -> int:
    from pipelines import candidates, versions

    bounds = {name: getattr(arguments, name) for name in ("max_errors", "max_slowdown", "min_requests")}
    bounds = {name: value for name, value in bounds.items() if value is not None}
    if "max_errors" in bounds:
        bounds["max_errors"] = candidates.parse_share(bounds["max_errors"])
    how = candidates.how_of(arguments.canary, arguments.shadow, bounds)
    versions.promote(arguments.run_folder, arguments.to, how, verbose=arguments.verbose)
    return 0


def _rollback(arguments: argparse.Namespace) -> int:
    from pipelines import versions

    versions.rollback(arguments.to, verbose=arguments.verbose)
    return 0


def _versions(arguments: argparse.Namespace) -> int:
    from pipelines import versions

    print(versions.versions(arguments.to, verbose=arguments.verbose))
    return 0
