"""The command `vidalign`, and `python -m vidalign`: the command line of `pipelines`, once it is certain that it is vidalign's own."""

from __future__ import annotations

import importlib
import os
import select
import sys

from vidalign.errors import ConfigError
from vidalign.hidden import refuse_hidden_packages

READER_GONE = 128 + 13  # as a shell says of a command that SIGPIPE ended


def main() -> int:
    """Entry point of the console script. Returns the process's exit code."""
    try:
        try:
            code = _main()
        finally:
            if sys.stdout is not None:  # `vidalign … >&-`
                sys.stdout.flush()
    except BrokenPipeError:  # `vidalign … | head` has read enough
        if not _reader_is_gone():
            raise
        return READER_GONE
    return code


def _main() -> int:
    try:
        refuse_hidden_packages()
    except ConfigError as error:
        print(f"vidalign: error: {error}", file=sys.stderr)
        return 2
    code: int = importlib.import_module("pipelines.cli").main()  # in a layer above, see `vidalign.align`
    return code


def _reader_is_gone() -> bool:
    """Whether nobody reads what this process writes any more; then what is left of it goes nowhere, so that the exit says nothing."""
    gone = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        asked = select.poll()
        asked.register(stream, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0)):
            gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


if __name__ == "__main__":
    sys.exit(main())
