"""How a command ends before its time: by Ctrl-C, by SIGTERM, or by an error that a watching thread found.

All three become an exception in the main thread, so that every `with` block on the way is left: Serve is shut down, Ray is left, the
lease ends. What takes longer than `LIMIT_S` is ended by force, with all processes that this one started.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn, TypeVar

import psutil

from cluster import hearing

LIMIT_S = 12.0
JUST_NOW_S = 1.0  # threads hear of a signal in no order
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = "\nvidalign: stopped; run the same command again to continue"
ResultT = TypeVar("ResultT")
# A child's signals are its own, see `hearing.told_at_once`.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; `exit_code` is what shells expect then."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Cancelled(SystemExit):
    """Ends a thread on whose work nobody waits any more; like any `SystemExit`, without a word."""


class _Ending:
    """How a command ends that something has ended: its last words, its exit code, and the timer that forces it."""

    def __init__(self) -> None:
        self.timer: threading.Timer | None = None
        self.exit_code, self.text = 0, ""
        self.is_own = False  # the next signal is this process's own
        self.told_at = -math.inf  # of the last signal, or of the end

    def begin(self, exit_code: int, text: str) -> None:
        self.exit_code, self.text = exit_code, text
        self.timer = threading.Timer(LIMIT_S, self.force)
        self.timer.daemon = True
        self.timer.start()

    def force(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(self.text, file=sys.stderr, flush=True)
        leave(self.exit_code)

    def go_on(self) -> None:
        """Nothing ends the command any more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def came(self, number: int) -> None:
        """A signal came, whether or not the main thread is where Python can tell it: a library may wait without Python."""
        late = threading.Timer(LIMIT_S, self.force_late, [number, time.monotonic()])
        late.daemon = True
        late.start()
        hearing.nudge()

    def force_late(self, number: int, came_at: float) -> None:
        """End the command by a signal that the main thread has not been told of."""
        if self.timer is None and self.told_at < came_at - JUST_NOW_S:
            self.exit_code, self.text = 128 + number, STOPPED
            self.force()

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.told_at = time.monotonic()
        if self.is_own:
            self.is_own = False
        elif self.timer is not None:
            self.force()
        else:
            self.begin(128 + number, STOPPED)
        raise Interrupted(number)


_ending: _Ending | None = None  # of the command that runs in `handled`
_stops: list[list[BaseException]] = []  # of each block of `stoppable`, what it was asked to end with


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` in this block of the main thread; a second signal ends it by force."""
    global _ending
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _ending = ending = _Ending()
    before = {number: signal.signal(number, ending.on_signal) for number in SIGNALS}
    try:
        with hearing.nudged(), hearing.told_at_once(SIGNALS, ending.came):
            yield
    finally:
        ending.go_on()
        ending.told_at = math.inf
        for number, handler in before.items():
            signal.signal(number, handler)
        _ending = None


def go_on() -> None:
    """The command goes on after an error of a watching thread, which was caught: nothing ends it by force any more."""
    if _ending is not None:
        _ending.go_on()


@contextlib.contextmanager
def until_signal() -> Iterator[None]:
    """A block that a signal ends as it is meant to be ended: what follows takes the time that it needs, up to the next signal.

    An error of a watching thread (`stoppable`) ends it as any other block.
    """
    try:
        yield
    except KeyboardInterrupt:
        if any(_stops):
            raise
        go_on()


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[BaseException], None]]:
    """A block of the main thread that other threads can end: yields the function that they call, once, with the error it raises."""
    found: list[BaseException] = []
    _stops.append(found)
    over, sending, heard = threading.Event(), threading.Lock(), False
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as shells start what is in the background

    def hear(number: int, frame: FrameType | None) -> None:
        if found:
            raise KeyboardInterrupt

    def signal_again() -> None:
        """Python drops an exception that a signal raises in a callback of its garbage collector, and then nothing has ended."""
        while not over.wait(LIMIT_S):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def stop(error: BaseException) -> None:
        with sending:
            if over.is_set() or found:
                return
            found.append(error)
            if _ending is not None:
                _ending.is_own = True
                _ending.begin(2, f"vidalign: error: {error}")
            else:
                threading.Thread(target=signal_again, daemon=True, name="stop").start()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            hearing.nudge()

    def hear_the_last() -> None:
        """A block that ends by another error meanwhile still gets the signal, which is not to strike what follows."""
        with sending:
            pass
        if found and (not heard if _ending is None else _ending.is_own):
            time.sleep(1)  # or as long as it takes to come

    try:
        if ignored:
            signal.signal(signal.SIGINT, hear)
        with hearing.nudged():
            yield stop
        # Python drops an exception that a signal raises inside a callback of its garbage collector.
        if found:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        heard = True
        if found:
            raise found[0] from None
        raise
    finally:
        over.set()
        try:
            hear_the_last()
        except KeyboardInterrupt:
            if not found:
                raise
        finally:
            _stops.remove(found)
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def signalled(within_s: float) -> bool:
    """For other threads: whether a signal has ended the block of `handled`, or does so in this time. No wait where there is none."""
    until = time.monotonic() + within_s
    while _ending is not None and time.monotonic() < until:
        if _ending.timer is not None:
            return True
        time.sleep(0.05)
    return False


def check() -> None:
    """Raises `KeyboardInterrupt` where another thread ended a block of `stoppable`: for waits that no signal may have reached."""
    if any(_stops):
        raise KeyboardInterrupt


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Handlers of signals that something sets in this block are taken back, unless there was none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler not in (None, signal.SIG_DFL):
                signal.signal(number, handler)


def beside(work: Callable[[], ResultT], poll_s: float = 0.2) -> ResultT:
    """Do work in a thread of its own and return what it returns, or raise what it raises.

    For libraries that set handlers of signals where they are called in the main thread: it stays free to be interrupted.
    """
    results: list[ResultT] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="beside")
    thread.start()
    while thread.is_alive():
        thread.join(poll_s)
        check()
    if errors:
        raise errors[0]
    return results[0]


def end_thread(thread: threading.Thread, limit_s: float, every_s: float = 1.0) -> bool:
    """Raise `Cancelled` in another thread, again and again, until it has ended or for so long. Returns whether it has.

    It is raised between two steps of Python: a thread in one long call of a library goes on until that returns.
    """
    until = time.monotonic() + limit_s
    while thread.is_alive() and time.monotonic() < until:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Cancelled))
        thread.join(min(every_s, max(0.0, until - time.monotonic())))
    return not thread.is_alive()


def leave(exit_code: int) -> NoReturn:
    """End this process and all below it at once: Python itself would first wait for threads that have nothing left to do."""
    end_children()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def end_children() -> None:
    """End all processes below this one, by force."""
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
