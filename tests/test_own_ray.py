"""A command whose own Ray is gone ends, in words; one whose Ray lives ends as it would."""

import os
import signal
import subprocess
import threading
import types

import pytest

from cluster import interrupts, own_ray, session
from vidalign.errors import ClusterError, DataError

SLEEP = ["sh", "-c", "exec sleep 60", "--log_dir=/somewhere/logs"]
SAYS = r"raylet, a process of the Ray that this command started, was killed by signal 9.*see /somewhere/logs\. Run the same"


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    monkeypatch.setattr(own_ray, "LOOK_EVERY_S", 0.1)


@pytest.fixture
def processes():
    made = {name: subprocess.Popen(SLEEP) for name in ("gcs_server", "raylet")}
    yield made
    for process in made.values():
        process.kill()
        process.wait()


def wait_without_end(processes) -> None:
    with own_ray.watched(processes):
        processes["raylet"].kill()
        threading.Event().wait(20)
        pytest.fail("nothing ended the wait")


def test_a_wait_for_a_ray_that_is_gone_ends(processes):
    with pytest.raises(ClusterError, match=SAYS):
        wait_without_end(processes)


def test_so_does_a_block_that_ends_as_it_should_at_the_next_signal(processes):
    def serve() -> None:
        with own_ray.watched(processes):
            processes["raylet"].kill()
            with interrupts.until_signal():
                threading.Event().wait(20)
            pytest.fail("it went on without Ray")

    with pytest.raises(ClusterError, match=SAYS):
        serve()


def test_a_signal_to_the_whole_process_group_is_a_stop_and_no_fault_of_ray(processes):
    """As Slurm's scancel and `timeout` send it; which of both ends is seen first is chance."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    sent = threading.Timer(2 * own_ray.LOOK_EVERY_S, os.kill, [os.getpid(), signal.SIGTERM])

    def work() -> None:
        with interrupts.handled(), own_ray.watched(processes):
            processes["raylet"].terminate()
            sent.start()
            threading.Event().wait(20)

    try:
        with pytest.raises(interrupts.Interrupted) as caught:
            work()
        assert caught.value.exit_code == 128 + signal.SIGTERM
    finally:
        sent.join()
        signal.signal(signal.SIGTERM, before)


def test_what_fails_because_of_it_is_not_shown(processes):
    def work() -> None:
        with own_ray.watched(processes):
            processes["raylet"].kill()
            processes["raylet"].wait()
            raise ConnectionError("broken pipe")

    with pytest.raises(ClusterError, match=SAYS):
        work()


def test_a_thread_that_fails_because_of_it_is_not_told_of_and_any_other_is(processes, monkeypatch):
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(str(arguments.exc_value)))

    def fail(text: str) -> None:
        thread = threading.Thread(target=int, args=[text])
        thread.start()
        thread.join()

    def work() -> None:
        with own_ray.watched(processes):
            fail("before")
            processes["raylet"].kill()
            fail("because of it")
            threading.Event().wait(20)

    with pytest.raises(ClusterError, match=SAYS):
        work()
    fail("after")
    assert [text.rpartition(": ")[2] for text in told] == ["'before'", "'after'"]


def test_other_ends_stay_as_they_are(processes):
    with pytest.raises(DataError, match="torn"), own_ray.watched(processes):
        raise DataError("torn")
    with own_ray.watched(processes):
        pass
    with own_ray.watched({}):
        pass


def test_a_process_that_ended_by_itself_is_named_with_its_code(processes):
    ended = subprocess.Popen(["false"])
    ended.wait()
    assert "gcs_server, a process of the Ray that this command started, ended with code 1" in str(
        own_ray.fault_of({"raylet": processes["raylet"], "gcs_server": ended})
    )
    assert own_ray.fault_of(processes) is None


def test_ray_takes_over_no_signal_that_somebody_listens_to():
    from ray._private import utils

    def mine(*_: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with own_ray.without_its_handler():
            utils.set_sigterm_handler(lambda *_: None)
            assert signal.getsignal(signal.SIGTERM) is mine
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with own_ray.without_its_handler():
            utils.set_sigterm_handler(mine)
        assert signal.getsignal(signal.SIGTERM) is mine, "where nobody did"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_start_of_ray_ends_where_one_of_its_processes_does(monkeypatch):
    """Ray's own function starts each; a block that waits in vain is told nothing."""
    from ray._private import services

    def own(command, kind):
        return types.SimpleNamespace(process=subprocess.Popen(command))

    monkeypatch.setattr(services, "start_ray_process", own)

    def start() -> None:
        with own_ray.starting():
            services.start_ray_process(["true"], "log_monitor")  # which may end
            services.start_ray_process(SLEEP, "raylet").process.kill()
            threading.Event().wait(20)
            pytest.fail("nothing ended the wait")

    with pytest.raises(ClusterError, match=SAYS):
        start()
    assert services.start_ray_process is own


@pytest.fixture
def begins(monkeypatch):
    """`ray.init` starts what this list says, a command a try, and waits for what has none; the processes of all tries."""
    import ray
    from ray._private import services

    commands, made = [], []

    def own(command, kind):
        made.append((kind, subprocess.Popen(command)))
        return types.SimpleNamespace(process=made[-1][1])

    def init(**options):
        services.start_ray_process(SLEEP, "gcs_server")
        if command := commands.pop(0):
            services.start_ray_process(command, "raylet")
            threading.Event().wait(20)
            pytest.fail("nothing ended the wait")

    monkeypatch.setattr(services, "start_ray_process", own)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    yield commands, made
    for _, process in made:
        process.kill()
        process.wait()


def test_a_ray_whose_process_gave_up_while_it_started_is_started_once_more(begins):
    """A raylet waits 15 s for an agent of its own and then gives up: too short on a busy machine."""
    commands, made = begins
    commands += [["false"], None]
    session.enter({"address": "local"})
    assert [kind for kind, _ in made] == ["gcs_server", "raylet", "gcs_server"]
    assert made[0][1].wait(20) == -signal.SIGKILL  # nothing of the first try stays
    assert made[2][1].poll() is None


@pytest.mark.parametrize(
    ("starts", "says", "tries"),
    [
        ([["false"], ["false"]], "ended with code 1. Run", 2),
        ([["sh", "-c", "kill -9 $$"]], "killed by signal 9, often for", 1),
    ],
    ids=["gave up twice", "killed"],
)
def test_a_ray_that_does_not_start_is_said(begins, starts, says, tries):
    commands, made = begins
    commands += starts
    with pytest.raises(ClusterError, match=says):
        session.enter({"address": "local"})
    assert [kind for kind, _ in made] == ["gcs_server", "raylet"] * tries
