"""Temporary folders of processes that were killed do not pile up."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

from cluster import scratch
from cluster.lease import this_process
from cluster.session import own_scratch
from vidalign import files
from vidalign.errors import ClusterError


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


def test_what_a_killed_command_left_goes_with_the_next(short_folder, monkeypatch):
    code = "from cluster.session import own_scratch\nwith own_scratch() as folder:\n print(folder, flush=True); input()"
    killed = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(short_folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None
    left = pathlib.Path(killed.stdout.readline().strip())
    monkeypatch.setattr(tempfile, "tempdir", str(short_folder))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with own_scratch():
        assert left.is_dir(), "while its process lives"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert left.is_dir()
    with own_scratch():
        assert not left.exists()
    assert list(short_folder.iterdir()) == []


def test_a_long_folder_for_temporary_files_holds_no_sockets(tmp_path, monkeypatch):
    """As batch systems name them; a socket's path has at most 107 bytes."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, "")  # and what it was afterwards
        monkeypatch.delenv(name)
    long = tmp_path / ("x" * 40)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with own_scratch() as folder:
        assert folder.parent == pathlib.Path("/tmp")
        assert os.environ["RAY_TMPDIR"] == "/tmp"
    assert list(long.iterdir()) == []
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    with (
        pytest.raises(ClusterError, match=r"^RAY_TMPDIR=\S+ is too long: .*; name a shorter one, such as /tmp$"),
        own_scratch(),
    ):
        pass


def test_the_longest_folder_for_sockets_is_that_of_ray(monkeypatch):
    from ray._private.utils import validate_socket_filepath

    longest = scratch.MAX_SOCKET_BYTES - len(scratch.OF_RAY.format(pid=os.getpid()))
    below = scratch.OF_RAY.format(pid=os.getpid())
    validate_socket_filepath("/" + "x" * (longest - 1) + below)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath("/" + "x" * longest + below)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (longest - 1))
    scratch.folder_for_sockets()
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * longest)
    with pytest.raises(ClusterError, match=f"so that {longest} are left"):
        scratch.folder_for_sockets()
