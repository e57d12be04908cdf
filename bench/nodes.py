"""Nodes of an autoscaling cluster while a submitted job runs on it: a head with one CPU, and as many workers as the job asks for.

    ray start --head (1 CPU, Ray's fake_multinode autoscaler) ◄── ray job submit -- vidalign align
    every second: how many nodes live ─► bench/results/nodes.json ─► docs/nodes.png

The worker nodes are processes of this machine: what is shown is when they are asked for, come and go, and not how fast a cloud is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from bench.pages import Output, add_arguments, this_commit

ROOT = pathlib.Path(__file__).parent.parent
BIN = pathlib.Path(sys.executable).parent
HEAD_ID = "f" * 56
STAGES = {name: rf"\s*{name}(,| aligned| base)" for name in ("rollout", "reference", "train", "evaluate")}
STAGES["endpoint"] = r"\s*start endpoint"
WORKERS, WORKER_CPUS, IDLE_MINUTES = 2, 2, 0.5
START_S, GONE_S = 200.0, 180.0


def head_options(folder: pathlib.Path, ports: dict[str, int], ip: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a head with one CPU and an autoscaler."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    types = {
        "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": WORKER_CPUS}, "node_config": {}, "min_workers": 0, "max_workers": WORKERS},
    }
    scaling: dict[str, Any] = {
        "cluster_name": "fake",
        "max_workers": WORKERS,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 20,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{ip}:{ports['port']}",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True,  # all nodes have the address of this machine
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": types,
        "file_mounts_sync_continuously": False,
    }
    scaling |= {
        name: []
        for name in (
            *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
            *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
        )
    }
    scaling |= {name: {} for name in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")}
    (folder / "scaling.json").write_text(json.dumps(scaling))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(int(START_S)),
        # The second version fills a config up from an example of this provider, which Ray's wheel lacks, and the head ends with it.
        "RAY_enable_autoscaler_v2": "0",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_raylet_start_wait_time_s": str(int(START_S)),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    options = {**ports, "temp-dir": folder, "num-cpus": 1, "object-store-memory": 300_000_000}
    options["autoscaling-config"] = folder / "scaling.json"
    command = [str(BIN / "ray"), "start", "--head", "--block", "--include-dashboard=true", "--disable-usage-stats"]
    return [*command, *(f"--{name}={value}" for name, value in options.items())], environment


@contextlib.contextmanager
def head(folder: pathlib.Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """A head that ends with the block, and all its nodes; yields its address, that of its job server, and its environment."""
    import ray._private.services

    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    ip = ray._private.services.get_node_ip_address()
    command, environment = head_options(folder, ports, ip)
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        server = f"http://127.0.0.1:{ports['dashboard-port']}"
        request = urllib.request.Request(
            f"{server}/api/jobs/", headers={"Authorization": f"Bearer {(folder / 'token').read_text()}"}
        )
        until = time.monotonic() + START_S
        while not _answers(request):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"the head did not start: {(folder / 'head.log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield f"{ip}:{ports['port']}", server, environment
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}  # they may name the folder too
        for other in psutil.process_iter(["cmdline"]):  # worker nodes are in sessions of their own
            if other.pid not in own and str(folder) in " ".join(other.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    other.kill()
        process.wait()


def _answers(request: urllib.request.Request) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
        return True
    return False


def _free_ports(num: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(num)]
    found = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return found


class Watch:
    """How many worker nodes live, every second, and when each stage began; in seconds since the job was submitted."""

    def __init__(self, count: Callable[[], int]) -> None:
        self.began = time.monotonic()
        self.nodes: list[tuple[float, int]] = []
        self.stages: dict[str, float] = {}
        self._count, self._over = count, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)

    def hear(self, line: str) -> None:
        """A line of the job's console."""
        for name, pattern in STAGES.items():
            if name not in self.stages and re.match(pattern, line):
                self.stages[name] = self.seconds()

    def _look(self) -> None:
        while not self._over.wait(1):
            with contextlib.suppress(Exception):  # the store of a busy head may miss an answer
                self.nodes.append((self.seconds(), self._count()))

    def until_gone(self, within_s: float) -> None:
        """Look until no worker is left."""
        until = time.monotonic() + within_s
        while time.monotonic() < until and (not self.nodes or self.nodes[-1][1]):
            time.sleep(1)
        time.sleep(2)
        self._over.set()


def workers_of(address: str, environment: dict[str, str]) -> Callable[[], int]:
    """A function that counts the nodes beside the head that live. A process with the head's token asks: Ray reads it once."""
    command = [sys.executable, "-m", "bench.nodes", "--count", address]
    process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def count() -> int:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    return count


def answer_counts(address: str) -> None:
    """Print how many nodes beside the head live for each line that is read."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=address)
    for _ in sys.stdin:
        print(sum(node.state == 0 for node in client.get_all_node_info(timeout=5).values()) - 1, flush=True)


def measure(folder: pathlib.Path) -> dict[str, Any]:
    """Submit one job to a head of its own and watch the nodes. Raises `SystemExit` where the job fails."""
    from bench.chaos import make_config

    (folder / "work").mkdir(parents=True)
    config = make_config(folder / "work")
    with head(folder) as (address, server, environment):
        watch = Watch(workers_of(address, environment))
        types = json.dumps({"worker": {"num_cpus": WORKER_CPUS, "max_nodes": WORKERS}})
        overrides = ["cluster.address=null", f"cluster.node_types={types}", "cluster.wait_for_nodes_s=200"]
        overrides += ["rollout.num_engines=2", "train.num_workers=2", "train.micro_batch_size=1"]
        run = [f"run_dir={folder / 'work' / 'run'}", f"serve.port={_free_ports(1)[0]}", *overrides]
        submit = [str(BIN / "ray"), "job", "submit", "--address", server, "--"]
        job = subprocess.Popen(
            [*submit, sys.executable, "-m", "pipelines.cli", "align", str(config), *run],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = []
        assert job.stdout is not None
        for line in job.stdout:
            said.append(line)
            print(f"{watch.seconds():6.1f} s {line}", end="", flush=True)
            watch.hear(line)
        if job.wait() != 0:
            of_head = (folder / "head.log").read_text()[-3000:]
            raise SystemExit(f"the job failed: {''.join(said)[-3000:]}\nits head said: {of_head}")
        ended_s = watch.seconds()
        watch.until_gone(GONE_S)
    found = {"commit": this_commit(), "ended_s": ended_s, "stages": watch.stages, "nodes": watch.nodes}
    return {**found, "workers": WORKERS, "worker_cpus": WORKER_CPUS, "idle_s": IDLE_MINUTES * 60}


def apart(marks: Sequence[tuple[str, float]], least_s: float) -> list[tuple[float, str]]:
    """(when, name) of the marks in their order; those that are not `least_s` after another share its place, where both are named."""
    found: list[tuple[float, str]] = []
    for name, at in sorted(marks, key=lambda mark: mark[1]):
        if found and at - found[-1][0] < least_s:
            found[-1] = found[-1][0], f"{found[-1][1]}, {name}"
        else:
            found.append((at, name))
    return found


def plot(found: dict[str, Any], path: pathlib.Path) -> None:
    """Worker nodes over time, with the stages of the job."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 2.6))
    seconds, nodes = [0.0, *(row[0] for row in found["nodes"])], [0, *(row[1] for row in found["nodes"])]
    axes.step(seconds, nodes, where="post", color="#1f5fa8", linewidth=2)
    marks = [*found["stages"].items(), ("job ends", found["ended_s"])]
    for at, name in apart(marks, seconds[-1] / 30):
        axes.axvline(at, color="0.75", linewidth=0.8)
        axes.text(at + 1, found["workers"] + 0.08, name, fontsize=8, rotation=20)
    axes.set(xlabel="seconds since `ray job submit`", ylabel="worker nodes", ylim=(-0.1, found["workers"] + 0.7))
    axes.set_yticks(range(found["workers"] + 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", action="store_true", help="draw the figures of the last measurement again")
    parser.add_argument("--count", metavar="ADDRESS", help=argparse.SUPPRESS)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="keep what the head and its nodes write here; short, for Ray's sockets"
    )
    add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.count:
        answer_counts(arguments.count)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no node is left running
    out = arguments.out or Output()
    if not arguments.plot:
        with contextlib.ExitStack() as stack:
            folder = arguments.folder or stack.enter_context(
                tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True)
            )
            out.keep("nodes", measure(pathlib.Path(folder)))
    plot(out.found("nodes"), out.docs / "nodes.png")


if __name__ == "__main__":
    main()
