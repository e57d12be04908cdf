"""Two nodes of one Ray cluster on this machine, as a process of its own: a head, and a node that may be killed.

python -m bench.chaos_nodes        prints {"address", "worker": the process number of the second node's raylet} as JSON,
                                   and ends with its standard input
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil

from bench.chaos_faults import Descendants

CPUS = 2  # logical, of each node


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[str, psutil.Process, Descendants]]:
    """(address, the raylet of the second node, all processes of both) of a cluster that ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.chaos_nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_worker_niceness": "0"},
        start_new_session=True,
    )
    started = Descendants(psutil.Process(process.pid))
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"{"):
                found: dict[str, Any] = json.loads(line)
                break
        else:
            raise SystemExit("the cluster of two nodes did not start")
        started.look()
        yield found["address"], psutil.Process(found["worker"]), started
    finally:
        started.look()
        process.kill()
        process.wait()
        started.end()


def main() -> None:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
    node = cluster.add_node(num_cpus=CPUS)
    raylet = node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid
    print(json.dumps({"address": cluster.address, "worker": raylet}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
