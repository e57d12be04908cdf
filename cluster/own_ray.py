"""A Ray that this process started, and that ends before it. Nothing of it can go on, so the command ends, in words.

Ray itself waits for its own store for a minute and then ends the process without one.
"""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping

from cluster import interrupts
from vidalign.errors import ClusterError

LOOK_EVERY_S = 0.5


@contextlib.contextmanager
def without_its_handler() -> Iterator[None]:
    """A block in which Ray does not take over SIGTERM, where somebody has: it would end the process at once, without a word."""
    from ray._private import utils

    if signal.getsignal(signal.SIGTERM) in (None, signal.SIG_DFL):
        yield
        return
    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


@contextlib.contextmanager
def watched(processes: Mapping[str, subprocess.Popen[bytes]], logs: pathlib.Path | None) -> Iterator[None]:
    """A block that ends once one of Ray's own processes has, also where its end shows as another error first.

    Args:
        processes: each by what it is called.
        logs: the folder with what they wrote, for the message.

    Raises:
        ClusterError: one has ended.
    """
    if not processes or threading.current_thread() is not threading.main_thread():
        yield
        return
    over = threading.Event()

    def keep_looking() -> None:
        while not over.wait(LOOK_EVERY_S):
            if (error := fault_of(processes, logs)) is not None:
                stop(error)
                return

    try:
        with interrupts.stoppable() as stop:
            threading.Thread(target=keep_looking, daemon=True, name="own-ray").start()
            yield
    except Exception as error:
        fault = fault_of(processes, logs)
        if fault is None:
            raise
        raise fault from error
    finally:
        over.set()


def fault_of(processes: Mapping[str, subprocess.Popen[bytes]], logs: pathlib.Path | None) -> ClusterError | None:
    """The end of a command whose Ray is gone; None where all of its processes live."""
    for name, process in processes.items():
        if (code := process.poll()) is not None:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            where = f"; see {logs}" if logs is not None else ""
            return ClusterError(
                f"{name}, a process of the Ray that this command started, {how}, often for want of memory{where}. Run the same "
                "command again: a run continues"
            )
    return None


def processes_of_node() -> dict[str, subprocess.Popen[bytes]]:
    """Those of the Ray that this process started without which it cannot work; none where it joined another's."""
    import ray._private.worker
    from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET

    node = ray._private.worker._global_node
    started = node.all_processes if node is not None else {}
    return {kind: made.process for kind in (PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET) for made in started.get(kind, [])}
