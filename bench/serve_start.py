"""One `vidalign serve` as a user starts it, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence

from bench.serve import START_TIMEOUT_S, Server


@contextlib.contextmanager
def started(
    command: Sequence[str], log: pathlib.Path, *, name: str, url: str, model: str, key: str
) -> Iterator[tuple[Server, float]]:
    """The endpoint that a command starts, ready to answer, and the seconds that it took; stopped at the end.

    Raises:
        SystemExit: it is not ready after START_TIMEOUT_S; the message ends with what it printed last.
    """
    with log.open("w") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    server = Server(name=name, url=url, process=process, model=model, key=key)
    try:
        began = time.monotonic()
        while not server.ready():
            if time.monotonic() > began + START_TIMEOUT_S:
                raise SystemExit(f"the endpoint did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.5)
        yield server, time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
