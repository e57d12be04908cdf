"""Ctrl-C, SIGTERM and errors of watching threads end a command within seconds, with a sentence and nothing left running."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from cluster import interrupts
from vidalign.errors import ClusterError

SCRIPT = """
import os, signal, subprocess, sys, threading, time
from cluster import interrupts
from pipelines import cli
from vidalign.errors import ClusterError

def ended_by_a_thread(cleanup):
    with interrupts.stoppable() as stop:
        threading.Timer(0.1, stop, [ClusterError("no node came")]).start()
        try:
            threading.Event().wait()
        finally:
            cleanup()

def work(arguments):
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        print(child.pid, flush=True)
        {work}
    finally:
        {cleanup}
    return 0

cli._run_doctor = work
interrupts.LIMIT_S = 0.5
sys.argv = ["vidalign", "doctor"]
sys.exit(cli.main())
"""


def started(work: str, cleanup: str = "child.kill()") -> tuple[subprocess.Popen, int]:
    code = SCRIPT.format(work=work, cleanup=cleanup)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def has_ended(pid: int) -> bool:
    """Whether it has ended or does so soon: a signal is sent before its process is gone."""
    until = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def is_running(pid: int) -> bool:
    stat = pathlib.Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("number", "code", "work", "cleanup"),
    [
        (signal.SIGINT, 130, "threading.Event().wait()", "child.kill()"),
        (signal.SIGTERM, 143, "time.sleep(60)", "child.kill()"),
        (signal.SIGTERM, 143, "time.sleep(60)", "threading.Thread(target=time.sleep, args=(60,)).start()"),
        (signal.SIGTERM, 143, "time.sleep(60)", "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"),
    ],
    ids=["waiting", "sleeping", "a thread that goes on", "hanging"],
)
def test_a_signal_ends_the_command_in_one_sentence(number, code, work, cleanup):
    process, child = started(work, cleanup)
    began = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    assert time.monotonic() - began < 15
    assert process.returncode == code
    assert error.strip() == "vidalign: stopped; run the same command again to continue"
    assert has_ended(child)


WITHOUT_PYTHON = """
        import ctypes
        print('in it', flush=True)
        lock = ctypes.create_string_buffer(64)
        for _ in range(2):  # the second time waits for good, in C, where no handler of Python's is called
            ctypes.CDLL(None).pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_the_command_while_a_library_waits_without_python(times):
    process, child = started(WITHOUT_PYTHON)
    assert process.stdout is not None
    assert process.stdout.readline() == "in it\n"
    for _ in range(times):
        process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 143
    assert error.strip() == "vidalign: stopped; run the same command again to continue"
    assert has_ended(child)


def test_a_signal_of_a_forked_child_is_not_this_commands():
    work = """
        if (forked := os.fork()) == 0:
            time.sleep(60)
        time.sleep(0.2)
        os.kill(forked, signal.SIGTERM)
        time.sleep(1.5)
        os.kill(forked, signal.SIGKILL)
        print('went on', flush=True)
"""
    process, child = started(work)
    said, error = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, "went on\n"), error
    assert has_ended(child)


def test_a_command_that_goes_on_after_an_error_of_a_watching_thread_is_not_ended():
    """As one whose Ray gave up while it started, and is started once more."""
    work = """
        try:
            ended_by_a_thread(lambda: None)
        except ClusterError:
            interrupts.go_on()
        time.sleep(1.5)
        print('went on', flush=True)
"""
    process, child = started(work)
    said, error = process.communicate(timeout=20)
    assert (process.returncode, said, error) == (0, "went on\n", "")
    assert has_ended(child)


def test_what_a_signal_is_meant_to_end_may_take_its_time():
    """As an endpoint that answers what it was asked before it goes: LIMIT_S is half a second here."""
    work = "with interrupts.until_signal(): print('in it', flush=True); threading.Event().wait()"
    process, child = started(work, "time.sleep(1.5); child.kill()")
    assert process.stdout is not None
    assert process.stdout.readline() == "in it\n"  # a signal before that would end the command as any other
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (0, "")
    assert has_ended(child)


def test_a_second_signal_does_not_wait_for_the_cleanup():
    process, child = started("time.sleep(60)", "print('cleaning', flush=True); interrupts.LIMIT_S = 60; time.sleep(60)")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=15) == 130
    assert has_ended(child)
    process.communicate()


@pytest.mark.parametrize("cleanup", ["child.kill()", "time.sleep(60)"])
def test_an_error_of_a_watching_thread_ends_the_command_as_any_other_error(cleanup):
    process, _ = started(f"ended_by_a_thread(lambda: {cleanup})", "child.kill()")
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error.strip()) == (2, "vidalign: error: no node came")


def test_a_block_that_fails_while_it_is_stopped_leaves_no_signal_behind(monkeypatch):
    """The signal comes a moment after the error that ends the block."""
    send = signal.pthread_kill

    def late(*arguments):
        failed.set()
        time.sleep(0.3)
        send(*arguments)

    def fail() -> None:
        with interrupts.stoppable() as stop:
            threading.Thread(target=stop, args=[ClusterError("no node came")]).start()
            failed.wait()
            raise ValueError("it was closed")

    monkeypatch.setattr(signal, "pthread_kill", late)
    for handled in (True, False):
        failed = threading.Event()
        with interrupts.handled() if handled else contextlib.nullcontext():
            with pytest.raises(ValueError, match="closed"):
                fail()
            for _ in range(20):
                time.sleep(0.01)


def test_a_block_that_is_over_is_not_stopped():
    with interrupts.stoppable() as stop:
        pass
    stop(ClusterError("too late"))
    time.sleep(0.05)


def test_an_interrupt_by_hand_stays_one():
    with pytest.raises(KeyboardInterrupt), interrupts.stoppable():
        raise KeyboardInterrupt


def test_handlers_that_a_library_sets_are_taken_back():
    def mine(*_: object) -> None: ...

    before = {number: signal.signal(number, mine) for number in interrupts.SIGNALS}
    try:
        with interrupts.kept():
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert [signal.getsignal(number) for number in interrupts.SIGNALS] == [mine, mine]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_work_in_a_thread_leaves_the_signals_to_the_main_one():
    assert interrupts.beside(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(ClusterError, match="x"):
        interrupts.beside(raising)
    ended = threading.Event()
    with pytest.raises(ClusterError, match="y"):
        stopped_while(ended.wait)
    ended.set()


def test_a_stop_whose_signal_python_dropped_still_ends_the_block(monkeypatch):
    """As in a callback of the garbage collector, where no exception gets out."""
    monkeypatch.setattr(interrupts.signal, "pthread_kill", lambda thread, number: None)
    ended = threading.Event()
    with pytest.raises(ClusterError, match="y"):
        stopped_while(ended.wait)
    ended.set()
    with pytest.raises(ClusterError, match="z"), interrupts.stoppable() as stop:
        stop(ClusterError("z"))


@pytest.fixture
def in_background():
    """As shells start what is in the background: SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


def test_a_stop_is_heard_where_ctrl_c_is_not(in_background):
    def work() -> None:
        with interrupts.stoppable() as stop:
            threading.Timer(0.05, stop, [ClusterError("y")]).start()
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(20)
            pytest.fail("nothing ended the wait")

    with pytest.raises(ClusterError, match="y"):
        work()


def test_a_stop_that_python_dropped_is_made_again(monkeypatch):
    monkeypatch.setattr(interrupts, "LIMIT_S", 0.05)
    send, sent = signal.pthread_kill, []

    def kill(thread: int, number: int) -> None:
        sent.append(number)
        if len(sent) > 1:
            send(thread, number)

    monkeypatch.setattr(interrupts.signal, "pthread_kill", kill)

    def work() -> None:
        with interrupts.stoppable() as stop:
            stop(ClusterError("y"))
            threading.Event().wait(20)
            pytest.fail("nothing ended the wait")

    with pytest.raises(ClusterError, match="y"):
        work()
    assert len(sent) == 2


def stopped_while(work) -> None:
    with interrupts.stoppable() as stop:
        threading.Timer(0.05, stop, [ClusterError("y")]).start()
        interrupts.beside(work)


def raising() -> None:
    raise ClusterError("x")
