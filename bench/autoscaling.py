"""An align job on a cluster that scales 0 → n → 0 worker nodes, and a plot of how many there were when.

    vidalign bench autoscaling [--nodes 2]

    ray start --head (1 CPU, fake_multinode) ─► ray job submit -- vidalign align ─► nodes by the second, stages by their manifests

The nodes are processes of this machine: Ray's own autoscaler starts and ends them, as it does machines of a cloud.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil

from bench.chaos_strikes import Descendants
from bench.pages import Output
from vidalign import files

CPUS = 2  # logical, of a worker node
IDLE_MINUTES = 0.25
START_S, JOB_S, DOWN_S = 120.0, 420.0, 120.0
PORTS = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
PACKAGES = ("vidalign", "cluster", "actors", "pipelines", "serving")
RAYLET = r"/raylet/raylet "
BIN = pathlib.Path(sys.executable).parent


def launcher_config(port: int, num_nodes: int) -> dict[str, Any]:
    """Every key that the monitor reads, for a head of one CPU and workers of `CPUS`."""
    empty: dict[str, Any] = {
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
        **{name: [] for name in ("setup_commands", "head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
        **{name: {} for name in ("auth", "docker", "file_mounts", "head_node", "worker_nodes")},
    }
    return {
        **empty,
        "cluster_name": "bench",
        "max_workers": num_nodes,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "file_mounts_sync_continuously": False,
        "provider": {
            "type": "fake_multinode",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "gcs_address": f"127.0.0.1:{port}",
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": CPUS}, "node_config": {}, "min_workers": 0, "max_workers": num_nodes},
        },
    }


@contextlib.contextmanager
def head(folder: pathlib.Path, num_nodes: int) -> Iterator[tuple[dict[str, str], str, str, Descendants]]:
    """(environment of clients, the job server's url, the cluster's address, its processes) of a head that ends with the block."""
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    files.write_json(folder / "launcher.json", launcher_config(ports["port"], num_nodes))
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_worker_niceness": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    options: dict[str, Any] = {
        **ports,
        "num-cpus": 1,
        "autoscaling-config": folder / "launcher.json",
        "temp-dir": folder / "ray",
        "object-store-memory": 200_000_000,
    }
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--include-dashboard=true",
                *(f"--{k}={v}" for k, v in options.items()),
            ],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    started = Descendants(psutil.Process(process.pid))
    try:
        _wait_for(ports["dashboard-port"], process)
        yield environment, f"http://127.0.0.1:{ports['dashboard-port']}", f"127.0.0.1:{ports['port']}", started
    finally:
        started.look()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        started.end()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return found


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.5)
    raise SystemExit("the head node did not start")


def measure(folder: pathlib.Path, num_nodes: int) -> dict[str, Any]:
    """Run the job; {"nodes": [[second, workers], …], "stages": {name: [begin, end]}, "job_s", "num_nodes"}."""
    from bench.built_in import MAX_NEW_TOKENS, make_run

    sizes = {"train": 24, "probe": 2}
    config = make_run(
        folder,
        sizes,
        recipe={"num_candidates": 2, "max_new_tokens": MAX_NEW_TOKENS, "min_trust_gap": 0.0},
        rollout={"batch_size": 4},
        train={"batch_size": 4, "micro_batch_size": 2, "num_workers": num_nodes, "log_every": 1},
    )
    config["model"]["path"] = str(pathlib.Path(config["model"]["path"]).absolute())
    files.write_json(folder / "align.json", config)
    code = folder / "code"
    for name in PACKAGES:
        shutil.copytree(name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    short = pathlib.Path(tempfile.mkdtemp(prefix="va"))  # Ray's socket paths have to be short
    try:
        with head(short, num_nodes) as (environment, url, address, started):
            types = {"worker": {"num_cpus": CPUS, "max_nodes": num_nodes}}
            overrides = [f"cluster.address={address}", f"cluster.node_types={json.dumps(types)}"]
            submit = [str(BIN / "ray"), "job", "submit", "--address", url, "--working-dir", str(code), "--"]
            job = subprocess.Popen(
                [*submit, "vidalign", "align", str(folder / "align.json"), *overrides],
                env=environment,
                stdout=(folder / "job.log").open("w"),
                stderr=subprocess.STDOUT,
            )
            nodes: list[list[float]] = [[0.0, 0]]
            began, done_s = time.time(), 0.0
            while True:
                now = time.time() - began
                workers = max(0, len(started.named(RAYLET)) - 1)
                if workers != nodes[-1][1]:
                    nodes += [[round(now, 1), workers]]
                    print(f"{now:5.0f} s: {workers} worker nodes", file=sys.stderr, flush=True)
                done_s = done_s or (now if job.poll() is not None else 0.0)
                if (done_s and (workers == 0 or now > done_s + DOWN_S)) or now > JOB_S + DOWN_S:
                    break
                time.sleep(0.5)
            nodes.append([round(time.time() - began, 1), workers])
            job.kill()
    finally:
        shutil.rmtree(short, ignore_errors=True)
    if job.wait() != 0:
        raise SystemExit(f"the job ended with {job.returncode}: {(folder / 'job.log').read_text()[-3000:]}")
    found = {}
    for stage in ("responses", "pairs", "train"):
        place = folder / "run" / "rounds" / "0" / stage
        end = files.read_json(place / "manifest.json")["finished_at"]
        found[stage] = [round((place / "begun.json").stat().st_mtime - began, 1), round(end - began, 1)]
    return {"nodes": nodes, "stages": found, "job_s": round(done_s, 1), "num_nodes": num_nodes, "cpus_of_node": CPUS}


def plot(found: Mapping[str, Any], path: pathlib.Path) -> None:
    """Worker nodes over time, with the stages of the run behind them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    nodes: Sequence[Sequence[float]] = found["nodes"]
    figure, axes = plt.subplots(figsize=(8, 2.8), layout="constrained")
    axes.step([second for second, _ in nodes], [count for _, count in nodes], where="post", color="black")
    for number, (name, (begin, end)) in enumerate(found["stages"].items()):
        axes.axvspan(begin, end, color=f"C{number}", alpha=0.25, label={"responses": "rollout"}.get(name, name))
    axes.axvline(found["job_s"], linestyle=":", color="grey", label="job ended")
    axes.set(xlabel="seconds since the job was submitted", ylabel="worker nodes", ylim=(0, found["num_nodes"] + 0.5))
    axes.set_yticks(range(found["num_nodes"] + 1))
    axes.legend(fontsize=8, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=2, help="the most worker nodes")
    parser.add_argument("--out", type=Output.below, default=Output(), help="a folder for figures and plot")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="autoscaling-") as folder:
        found = measure(pathlib.Path(folder), arguments.nodes)
    arguments.out.keep("autoscaling", found)
    plot(found, arguments.out.docs / "autoscaling.png")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
