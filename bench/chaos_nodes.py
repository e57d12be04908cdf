"""Two nodes of one Ray cluster on this machine beside a head without CPUs, as a process of its own. One of them may be killed.

`python -m bench.chaos_nodes` prints {"address", "pid": of the second node's raylet, "node": its id} as JSON, adds a node for each line
"add" of its standard input, and ends with it. With the JSON of a `Network` as its argument, the second node is on its other side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil

from bench.chaos_network import Network, network
from bench.chaos_strikes import Descendants, TwoNodes

CPUS = 2  # logical, of each node
STARTS_WITHIN_S = 60.0


@contextlib.contextmanager
def two_nodes(*, apart: bool = False) -> Iterator[TwoNodes]:
    """A cluster that ends with the block. `apart`: the network between its nodes may be cut."""
    with network() if apart else contextlib.nullcontext() as between:
        yield from _two_nodes(between)


def _two_nodes(between: Network | None) -> Iterator[TwoNodes]:
    command = [sys.executable, "-m", "bench.chaos_nodes"]
    gloo = {} if between is None else {"GLOO_SOCKET_IFNAME": between.name}
    process = subprocess.Popen(
        [*command, *([] if between is None else [json.dumps(dataclasses.asdict(between))])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RAY_worker_niceness": "0", **gloo},
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
            between=between,
        )
    finally:
        started.look()
        process.kill()
        process.wait()
        started.end()


def main() -> None:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET
    from ray.cluster_utils import Cluster

    between = Network(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else None
    ip = {} if between is None else {"node_ip_address": between.here}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **ip})
    cluster.add_node(num_cpus=CPUS, **ip)
    if between is None:
        node = cluster.add_node(num_cpus=CPUS)
        pid, node_id = node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid, node.node_id
    else:
        pid, node_id = node_on_the_other_side(cluster.address, between)
    print(json.dumps({"address": cluster.address, "pid": pid, "node": node_id}), flush=True)
    for line in sys.stdin:
        if line.strip() == "add":
            cluster.add_node(num_cpus=CPUS, **ip)


def node_on_the_other_side(address: str, between: Network) -> tuple[int, str]:
    """Start a node there. Returns its raylet's process and its id."""
    import ray

    options = [f"--address={address}", f"--node-ip-address={between.there}", f"--num-cpus={CPUS}", "--block"]
    subprocess.Popen(
        between.within([sys.executable, "-m", "ray.scripts.scripts", "start", *options]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    until = time.monotonic() + STARTS_WITHIN_S
    while not (found := [node for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == between.there]):
        if time.monotonic() > until:
            raise SystemExit("the node behind the cable did not come")
        time.sleep(0.3)
    ray.shutdown()
    [raylet] = [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if "/raylet/raylet" in (line := " ".join(process.cmdline())) and f"--node_ip_address={between.there}" in line
    ]
    return raylet, found[0]["NodeID"]


if __name__ == "__main__":
    main()
