"""Temporary folders of processes that were killed do not pile up."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

from cluster import scratch
from cluster.lease import this_process
from cluster.session import own_scratch
from vidalign import files


def test_only_folders_of_processes_that_have_ended_are_removed(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    own = this_process("")
    owners = {
        "own": own,
        "ended": dataclasses.replace(own, pid=ended.pid, started="1"),
        "elsewhere": dataclasses.replace(own, machine="another", pid=ended.pid, started="1"),
    }
    for name, owner in owners.items():
        files.write_json(tmp_path / f"x-{name}" / scratch.OWNER, dataclasses.asdict(owner))
    for name in ("x-nobody", "x-torn", "y-ended"):
        (tmp_path / name).mkdir()
    (tmp_path / "x-torn" / scratch.OWNER).write_text('{"pid": ')
    scratch.remove_left(tmp_path, "x-*")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-elsewhere", "x-nobody", "x-own", "x-torn", "y-ended"]


def test_what_a_killed_command_left_goes_with_the_next(tmp_path, monkeypatch):
    code = "from cluster.session import own_scratch\nwith own_scratch() as folder:\n print(folder, flush=True); input()"
    killed = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    left = pathlib.Path(killed.stdout.readline().strip())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with own_scratch():
        assert left.is_dir(), "while its process lives"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left.is_dir()
    with own_scratch():
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []
