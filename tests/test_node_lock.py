"""Engines that share a GPU start one after the other, in whatever processes they are."""

import subprocess
import sys

from conftest import ROOT

SCRIPT = """
import asyncio, pathlib, sys, time
from cluster.node_lock import alone

async def start():
    async with alone(pathlib.Path(sys.argv[1])):
        print(time.monotonic(), flush=True)
        await asyncio.sleep(0.2)
        print(time.monotonic(), flush=True)

asyncio.run(start())
"""


def test_blocks_of_two_processes_do_not_overlap(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "lock")]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    spans = sorted(tuple(map(float, process.communicate()[0].split())) for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert spans[0][1] <= spans[1][0], spans
