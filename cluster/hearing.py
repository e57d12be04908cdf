"""That a signal is heard wherever the main thread is: in Python, in a library, or on the way into a call that waits."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator

NUDGE = signal.SIGURG  # ignored wherever nothing handles it
NUDGES_S = (0.5, 1.0, 2.0)  # waits before each


@contextlib.contextmanager
def nudged() -> Iterator[None]:
    """A block of the main thread in which `NUDGE` ends no more than the call that the thread waits in, and that goes on."""
    before = signal.signal(NUDGE, lambda number, frame: None)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(NUDGE, before)


def nudge() -> None:
    """Wake the main thread some times, from now on.

    A signal that comes while it goes into a call, after Python's last look at signals and before the kernel has the call, interrupts
    nothing, and is heard when the call is over.
    """

    def run() -> None:
        for wait_s in NUDGES_S:
            time.sleep(wait_s)
            signal.pthread_kill(threading.main_thread().ident or 0, NUDGE)

    threading.Thread(target=run, daemon=True, name="nudge").start()


@contextlib.contextmanager
def told_at_once(signals: Collection[int], came: Callable[[int], None]) -> Iterator[None]:
    """A block in which a thread hears of `signals` as they come: handlers wait until the main thread is back in Python."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def listen() -> None:
        with open(reader, "rb", buffering=0) as pipe:
            while heard := pipe.read(1):
                if heard[0] in signals:
                    came(heard[0])

    threading.Thread(target=listen, daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
