"""One run has one driver: the lease on a run's folder."""

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from cluster import lease as leases
from cluster.lease import Lease, Owner, check_free
from pipelines import cli
from vidalign.errors import ConfigError

FAST = {"renew_s": 0.05, "stale_s": 0.4}
ELSEWHERE = Owner(id="x", command="vidalign align a.yaml", user="ann", host="other", machine="other", pid=7, started="1")


def holder_code(folder: pathlib.Path, then: str) -> str:
    return (
        f"import sys, time, pathlib; from cluster.lease import Lease; lease = Lease(pathlib.Path({str(folder)!r}), 'first command');"
        f"lease.__enter__(); print('held', flush=True); {then}"
    )


@pytest.fixture
def other_driver(tmp_path):
    """Another process that holds the lease of tmp_path and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", holder_code(tmp_path, "time.sleep(60)")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_driver_is_told_who_holds_the_run_and_since_when(tmp_path, other_driver):
    with pytest.raises(ConfigError, match=rf"`first command` \(\S+, process {other_driver.pid} on \S+\) since \d\d\d\d-"):
        Lease(tmp_path, "second").__enter__()
    with pytest.raises(ConfigError, match="in use by"):
        check_free(tmp_path)


def test_after_a_sigkill_the_next_one_goes_on_at_once(tmp_path, other_driver):
    other_driver.send_signal(signal.SIGKILL)  # not waited for: a zombie counts as dead
    while leases.is_alive(other_driver.pid, leases.start_of(other_driver.pid)):
        time.sleep(0.01)
    began = time.monotonic()
    with Lease(tmp_path, "second"):
        assert time.monotonic() - began < leases.STALE_S / 2
        with pytest.raises(ConfigError, match="in use by `second`"):
            Lease(tmp_path, "third").__enter__()


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path):
    write_record(tmp_path, 1, leases.this_process("before the restart", id="x"), started="0")
    with Lease(tmp_path, "now"):
        pass


def test_a_lease_ends_with_its_block_and_leaves_one_small_file(tmp_path):
    for number in range(3):
        with Lease(tmp_path, f"run {number}"):
            assert len(list((tmp_path / "lease").iterdir())) == 1
    check_free(tmp_path)
    [path] = (tmp_path / "lease").iterdir()
    assert json.loads(path.read_text())["ended"]


def test_a_holder_elsewhere_that_renews_is_believed_whatever_its_clock_says(tmp_path):
    """Its clock is a year ahead, and the file's time a year behind: neither counts."""
    with Lease(tmp_path, "there", owner=ELSEWHERE, **FAST) as held:
        year = 365 * 86_400
        os.utime(held.path, (time.time() - year, time.time() - year))
        began = time.monotonic()
        with pytest.raises(ConfigError, match=r"`vidalign align a.yaml` \(ann, process 7 on other\)"):
            Lease(tmp_path, "here", renew_s=0.05, stale_s=20).__enter__()
        assert time.monotonic() - began < 10, "it waited as for one that does not renew"


def test_a_holder_elsewhere_that_is_gone_is_followed_within_the_stale_time(tmp_path):
    write_record(tmp_path, 3, ELSEWHERE)
    path = tmp_path / "lease" / "000003.json"
    os.utime(path, (time.time() + 1e7, time.time() + 1e7))
    began, waited = time.monotonic(), []
    with Lease(tmp_path, "here", on_wait=waited.append, **FAST) as held:
        assert FAST["stale_s"] <= time.monotonic() - began < leases.STALE_S / 2
        assert held.path.name == "000004.json"
    assert "other" in waited[0]


def test_a_holder_that_was_followed_notices(tmp_path):
    lost = []
    with Lease(tmp_path, "slow", owner=ELSEWHERE, on_loss=lost.append, **FAST) as held:
        write_record(tmp_path, 2, ELSEWHERE)
        deadline = time.monotonic() + 5
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "took over" in str(lost[0])
        assert held.is_lost
    assert not json.loads((tmp_path / "lease" / "000002.json").read_text())["ended"]  # the other's is not ended by this one


def race(folder: str, barrier, won) -> None:
    barrier.wait()
    try:
        with Lease(pathlib.Path(folder), "racer", **FAST):
            won.put(os.getpid())
            time.sleep(0.5)
    except ConfigError:
        won.put(None)


def test_of_several_that_begin_at_the_same_time_one_wins(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, won = context.Barrier(6), context.Queue()
    racers = [context.Process(target=race, args=(str(tmp_path), barrier, won)) for _ in range(6)]
    for racer in racers:
        racer.start()
    winners = [found for _ in racers if (found := won.get(timeout=20)) is not None]
    for racer in racers:
        racer.join()
    assert len(winners) == 1


def test_a_torn_record_is_followed(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "000001.json").write_text("{")
    with Lease(tmp_path, "here", **FAST) as held:
        assert held.path.name == "000002.json"


def test_the_command_refuses_in_one_sentence(tmp_path, other_driver, capsys):
    config = tmp_path / "a.yaml"
    config.write_text(f"run_dir: {tmp_path}\nmodel: {{path: examples/shapes/model}}\ndata: {{train: none.jsonl}}\n")
    for command in (["align"], ["train"], ["evaluate"], ["align", "--dry-run"]):
        assert cli.main([command[0], str(config), *command[1:]]) == 2
        error = capsys.readouterr().err
        assert "in use by `first command`" in error
        assert error.count("\n") == 1


def write_record(folder: pathlib.Path, number: int, owner: Owner, **changed: str) -> None:
    place = folder / "lease"
    place.mkdir(exist_ok=True)
    record = {**leases.record_of(owner), **changed}
    (place / f"{number:06d}.json").write_text(json.dumps(record))
