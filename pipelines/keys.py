"""`vidalign keys add NAME`: a key for an endpoint."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from serving.access import add_key


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    command = commands.add_parser("keys", help="make a key with which an endpoint may be asked")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a key: its hash goes into a file, and the key itself is shown once")
    add.add_argument("name", metavar="NAME", help="what the endpoint's log calls it")
    add.add_argument("--file", default="keys.txt", help="the file of serve.access.keys_file (default: keys.txt)")
    add.set_defaults(run=_run_add)


def _run_add(arguments: argparse.Namespace) -> int:
    print(add_key(arguments.file, arguments.name))
    print(f"this is shown once; serve with serve.access.keys_file={arguments.file}", file=sys.stderr)
    return 0
