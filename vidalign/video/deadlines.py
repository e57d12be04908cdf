"""What the decoding process says of what its time goes to, since only decoding is the video's own, and the alarm that ends it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import IO

FETCH_S = 600.0  # for a store to send a video, or to take its frames: that time is no fault of the video
ALARM_AFTER_DEADLINE_S = 10.0
OPENED, AT_STORE = b"opened\n", b"at the store\n"


class Deadlines:
    """The deadline of one video in the decoding process. `fetches`: its files come from a store first; `alarm_s`: for decoding.

    The parent kills the process at the deadline. If the parent has died, the alarm keeps a process that hangs from outliving it:
    its default action ends the process, even inside a decoder's C code.
    """

    def __init__(self, replies: IO[bytes], alarm_s: float, *, fetches: bool) -> None:
        self._replies, self._alarm_s, self._fetches = replies, alarm_s, fetches
        self._set()

    def opened(self) -> None:
        """The files are there."""
        if self._fetches:
            self._fetches = False
            self._replies.write(OPENED)
        self._set()

    @contextlib.contextmanager
    def at_store(self) -> Iterator[None]:
        """A block in which the store of the decoded frames is asked, or written."""
        signal.setitimer(signal.ITIMER_REAL, FETCH_S + ALARM_AFTER_DEADLINE_S)
        self._replies.write(AT_STORE)
        yield
        if not self._fetches:
            self._replies.write(OPENED)
        self._set()

    def _set(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, FETCH_S + ALARM_AFTER_DEADLINE_S if self._fetches else self._alarm_s)
