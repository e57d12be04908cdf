"""Processes that libraries start below an actor, and that would outlive it where it is killed, with its memory and its GPUs.

vLLM's engine core is one: it waits for requests of a parent that is gone (vLLM's workers below it end with it).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

LOOK_EVERY_S = 1.0


def end_with_parent() -> None:
    """Let a thread end this process by force once the one that started it is gone. Does nothing in one that multiprocessing did not
    start."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != os.getppid() or any(thread.name == __name__ for thread in threading.enumerate()):
        return

    def keep_looking() -> None:
        while os.getppid() == parent.pid:
            time.sleep(LOOK_EVERY_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=keep_looking, daemon=True, name=__name__).start()
