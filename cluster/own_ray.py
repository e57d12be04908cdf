"""A Ray that this process started, and that ends before it. Nothing of it can go on, so the command ends, in words.

Ray itself waits for its own store for a minute and then ends the process without one.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cluster import interrupts
from vidalign.errors import ClusterError

LOOK_EVERY_S = 0.5
SIGNAL_S = 2.0  # that a signal to the whole process group may take to be heard here, once a process of Ray has ended by it
LOGS = "--log_dir="  # of the commands of Ray's processes


class EndedError(ClusterError):
    """One of the processes of a Ray that this process started has ended: was killed, or gave up by itself."""

    gave_up = False


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
def starting() -> Iterator[None]:
    """A block in which Ray starts: it ends, in words, once one of the processes that Ray starts for itself in it has ended.

    Ray waits for its own store without Python, so that a process which has waited long enough is ended and nothing can be caught. What
    Ray has started by then is ended with it.

    Raises:
        EndedError: one has ended.
    """
    from ray._private import services

    before, started = services.start_ray_process, dict[str, subprocess.Popen[bytes]]()
    everything: list[subprocess.Popen[bytes]] = []

    def start(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        made = before(command, process_type, *arguments, **options)
        everything.append(made.process)
        if process_type in _needed():
            started[process_type] = made.process
        return made

    services.start_ray_process = start
    try:
        with watched(started):
            yield
    except EndedError:
        for process in everything:
            process.kill()
        interrupts.go_on()  # nothing is left that takes long to end, and it may be tried again
        raise
    finally:
        services.start_ray_process = before


@contextlib.contextmanager
def watched(processes: Mapping[str, subprocess.Popen[bytes]]) -> Iterator[None]:
    """A block that ends once one of Ray's own processes has, also where its end shows as another error first.

    Args:
        processes: each by what it is called; more may be added meanwhile.

    Raises:
        EndedError: one has ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    over, told = threading.Event(), threading.excepthook

    def tell(arguments: threading.ExceptHookArgs) -> None:
        """Ray's own threads fail too where its store has gone: that is not told again."""
        until = time.monotonic() + LOOK_EVERY_S
        while fault_of(processes) is None:
            if time.monotonic() > until:
                told(arguments)
                return
            time.sleep(0.05)

    def keep_looking() -> None:
        while not over.wait(LOOK_EVERY_S):
            if (error := fault_of(processes)) is not None:
                if not interrupts.signalled(SIGNAL_S):
                    stop(error)
                return

    try:
        with interrupts.stoppable() as stop:
            threading.excepthook = tell
            threading.Thread(target=keep_looking, daemon=True, name="own-ray").start()
            yield
    except Exception as error:
        fault = fault_of(processes)
        if fault is None:
            raise
        raise fault from error
    finally:
        over.set()
        threading.excepthook = told


def may_try_again(error: Exception) -> bool:
    """Whether Ray did not start because its own deadlines were missed, which they seldom are twice on a busy machine."""
    return error.gave_up if isinstance(error, EndedError) else "timed out" in str(error)


def fault_of(processes: Mapping[str, subprocess.Popen[bytes]]) -> EndedError | None:
    """The end of a command whose Ray is gone; None where all of its processes live."""
    for name, process in list(processes.items()):
        if (code := process.poll()) is not None:
            how = f"was killed by signal {-code}, often for want of memory" if code < 0 else f"ended with code {code}"
            words = process.args if isinstance(process.args, list) else []
            where = "".join(f"; see {word.removeprefix(LOGS)}" for word in words if word.startswith(LOGS))
            error = EndedError(
                f"{name}, a process of the Ray that this command started, {how}{where}. Run the same "
                "command again: a run continues"
            )
            error.gave_up = code >= 0
            return error
    return None


def processes_of_node() -> dict[str, subprocess.Popen[bytes]]:
    """Those of the Ray that this process started without which it cannot work; none where it joined another's."""
    import ray._private.worker

    node = ray._private.worker._global_node
    started = node.all_processes if node is not None else {}
    return {kind: made.process for kind in _needed() for made in started.get(kind, [])}


def _needed() -> tuple[str, str]:
    """Ray's names for its processes without which nothing works."""
    from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET

    return PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
