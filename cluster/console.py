"""What libraries of other languages write to the console, past Python and its loggers."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

STDERR = 2  # the file descriptor


def quiet_libraries() -> None:
    """Keep what vLLM says off the console. It reads the level when it is imported, and says things before it has read it."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(logging.ERROR)


@contextlib.contextmanager
def without_native_lines() -> Iterator[None]:
    """A block in which only Python writes to standard error: Ray's C++ part begins with a line on its own log level."""
    try:
        is_own = sys.stderr.fileno() == STDERR
    except (OSError, ValueError, AttributeError):
        is_own = False
    if not is_own:  # somebody has put another in its place, as test runners and notebooks do
        yield
        return
    ours = sys.stderr
    ours.flush()
    with os.fdopen(os.dup(STDERR), "w", buffering=1, errors="backslashreplace") as kept:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)
        sys.stderr = kept
        try:
            yield
        finally:
            os.dup2(kept.fileno(), STDERR)
            sys.stderr = ours


@contextlib.contextmanager
def without_raylet_lines() -> Iterator[None]:
    """A block in which Ray does not print what its raylet reports, which goes to standard output among a command's own lines.

    It has no option for it. What matters of these reports arrives as an exception too.
    """
    import ray._private.worker as worker

    theirs = worker.print_worker_logs
    worker.print_worker_logs = lambda *_, **__: None
    try:
        yield
    finally:
        worker.print_worker_logs = theirs
