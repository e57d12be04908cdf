"""Two nodes of one Ray cluster on this machine beside a head without CPUs, as a process of its own. One of them may be killed.

`python -m bench.chaos_nodes` prints {"address", "pid": of the second node's raylet, "node": its id} as JSON, adds a node for each line
"add" of its standard input, and ends with it.
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

from bench.chaos_strikes import Descendants, TwoNodes

CPUS = 2  # logical, of each node


@contextlib.contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """A cluster that ends with the block."""
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
        assert process.stdin is not None
        yield TwoNodes(
            address=found["address"],
            raylet=psutil.Process(found["pid"]),
            node_id=found["node"],
            started=started,
            orders=process.stdin,
        )
    finally:
        started.look()
        process.kill()
        process.wait()
        started.end()


def main() -> None:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    cluster.add_node(num_cpus=CPUS)
    node = cluster.add_node(num_cpus=CPUS)
    raylet = node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid
    print(json.dumps({"address": cluster.address, "pid": raylet, "node": node.node_id}), flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            cluster.add_node(num_cpus=CPUS)


if __name__ == "__main__":
    main()
