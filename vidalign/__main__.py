"""The command `vidalign`, and `python -m vidalign`: the command line of `pipelines`, once it is certain that it is vidalign's own."""

from __future__ import annotations

import importlib
import sys

from vidalign.errors import ConfigError
from vidalign.hidden import refuse_hidden_packages


def main() -> int:
    """Entry point of the console script. Returns the process's exit code."""
    try:
        refuse_hidden_packages()
    except ConfigError as error:
        print(f"vidalign: error: {error}", file=sys.stderr)
        return 2
    code: int = importlib.import_module("pipelines.cli").main()  # in a layer above, see `vidalign.align`
    return code


if __name__ == "__main__":
    sys.exit(main())
