"""An engine's process ends with the replica that started it, also where that is killed."""

import subprocess
import sys
import time

import psutil
import pytest

from bench.chaos_strikes import is_alive
from cluster import orphans

# As vLLM starts its engine core: a daemon of multiprocessing, in which its plugins are loaded.
REPLICA = """
import multiprocessing, os, signal, sys, time

def core(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from cluster import orphans
    orphans.LOOK_EVERY_S = 0.05
    orphans.end_with_parent()
    orphans.end_with_parent()
    ready.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    ready, theirs = context.Pipe()
    context.Process(target=core, args=(theirs,), daemon=True).start()
    print(ready.recv(), flush=True)
    time.sleep(60)
"""


def test_an_engine_core_ends_with_its_replica(tmp_path):
    (tmp_path / "replica.py").write_text(REPLICA)
    for method in ("spawn", "fork"):
        replica = subprocess.Popen(
            [sys.executable, str(tmp_path / "replica.py"), method], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert replica.stdout is not None
        core = psutil.Process(int(replica.stdout.readline()))
        time.sleep(0.2)
        assert core.is_running(), "while its parent lives"
        replica.kill()
        replica.wait()
        replica.stdout.close()
        until = time.monotonic() + 10
        while is_alive(core):
            assert time.monotonic() < until, method
            time.sleep(0.05)


def test_a_process_of_its_own_is_left_alone():
    orphans.end_with_parent()


def test_vllm_lets_each_of_its_processes_do_it(monkeypatch):
    from serving import video_loader

    called = []
    monkeypatch.setattr(orphans, "end_with_parent", lambda: called.append(True))
    monkeypatch.setitem(sys.modules, "vllm", None)  # whose import takes long
    with pytest.raises(ImportError):
        video_loader.register()
    assert called
