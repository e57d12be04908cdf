"""`ray job submit --working-dir . -- vidalign …` against a cluster of its own: head, job server, token, uploaded code.

Its `align` is on rows of every shape, which so go through real rollouts, training and the report.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import pytest
import yaml
from shape_rows import write_mixed

from vidalign import files
from vidalign.types import PreferencePair, QuarantineRow, Response

ROOT = pathlib.Path(__file__).parent.parent
BIN = pathlib.Path(sys.executable).parent
PACKAGES = ("vidalign", "cluster", "actors", "pipelines", "serving")
START_TIMEOUT_S = 240
ALIGN_TIMEOUT_S = 1200
pytestmark = pytest.mark.heavy

# Where the driver and a worker found the code, what `connect` made of the cluster, and what the driver holds of Ray.
PROBE = """
import json, pathlib, ray, vidalign
from cluster.session import connect
from vidalign.config.cluster import ClusterConfig

@ray.remote
def imported_from():
    import vidalign.config
    return vidalign.__file__

with connect(ClusterConfig()) as resources:
    found = {"driver": vidalign.__file__, "worker": ray.get(imported_from.remote()), "num_cpus": resources.num_cpus}
pathlib.Path(OUT).write_text(json.dumps(found))
"""


class Head:
    """A Ray head with a job server, in a process group of its own; `ray stop` would stop every Ray of the machine."""

    def __init__(self, folder: pathlib.Path, num_cpus: int) -> None:
        self.folder = folder
        self.ports = dict(zip(("gcs", "dashboard", "client", "agent", "grpc", "metrics"), free_ports(6), strict=True))
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_TIMEOUT_S),  # busy cores miss the default of 60 s
            "RAY_raylet_start_wait_time_s": str(START_TIMEOUT_S),
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        self.log = (folder / "head.log").open("w")
        options = {
            "port": self.ports["gcs"],
            "dashboard-port": self.ports["dashboard"],
            "ray-client-server-port": self.ports["client"],
            "dashboard-agent-listen-port": self.ports["agent"],
            "dashboard-agent-grpc-port": self.ports["grpc"],
            "metrics-export-port": self.ports["metrics"],
            "temp-dir": folder,
            "num-cpus": num_cpus,
            "object-store-memory": 300_000_000,
        }
        command = [str(BIN / "ray"), "start", "--head", "--block", "--include-dashboard=true", "--disable-usage-stats"]
        self.process = subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in options.items())],
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    def wait(self) -> None:
        """Until the job server answers a request that carries the token."""
        token = (self.folder / "token").read_text()
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert self.process.poll() is None, f"ray start ended:\n{(self.folder / 'head.log').read_text()}"
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline, f"no job server:\n{(self.folder / 'head.log').read_text()}"
                time.sleep(1)

    def submit(self, working_dir: pathlib.Path, *entrypoint: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run to the end of the job; one that takes longer fails with what it printed until then."""
        command = [str(BIN / "ray"), "job", "submit", "--address", self.address, "--working-dir", str(working_dir), "--"]
        try:
            return subprocess.run(
                [*command, *entrypoint], env=self.environment, capture_output=True, text=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired as error:
            printed = b"".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes)).decode()
            raise AssertionError(f"the job did not end within {timeout_s:g} s:\n{printed[-4000:]}") from None

    def job(self, *arguments: str, timeout_s: float = 60) -> str:
        """What a `ray job` command prints."""
        command = [str(BIN / "ray"), "job", arguments[0], "--address", self.address, *arguments[1:]]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout_s)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def at_work(self) -> list[str]:
        """What a job started on this cluster and is there: actors, tasks and what they started, but not what Ray itself keeps."""
        lines = []
        for pid in self._left_over():
            with contextlib.suppress(OSError):
                lines.append(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
        own = ("ray::IDLE", "ray::RuntimeEnv", "ray::Dashboard", "ray::JobSupervisor", "ray::TelemetryAgent")
        return [
            line for line in lines if re.match("ray::|VLLM|.*haproxy|.*vidalign serve", line) and not line.startswith(own)
        ]

    def stop(self) -> None:
        """End `ray start` (which ends its daemons), then whatever of its group or session is left."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        for pid in self._left_over():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(timeout=30)
        self.log.close()

    def _left_over(self) -> list[int]:
        """Processes whose environment or arguments carry this head's own folder."""
        mark = str(self.folder).encode()
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "cmdline").read_bytes() or mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


@pytest.fixture(scope="module")
def head():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="va", dir="/tmp"))  # Ray's socket paths have to be short
    started = Head(folder, num_cpus=max(2, os.cpu_count() or 1))
    try:
        started.wait()
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The code alone, as --working-dir uploads it."""
    folder = tmp_path_factory.mktemp("project")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_job_runs_the_uploaded_code_in_the_cluster(head, project, tmp_path):
    out = tmp_path / "found.json"
    (project / "probe.py").write_text(PROBE.replace("OUT", repr(str(out))))
    done = head.submit(project, "python", "probe.py", timeout_s=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["num_cpus"] == max(2, os.cpu_count() or 1)
    # One copy of the code, the uploaded one, on both sides: two copies would make two classes of every record.
    assert "working_dir_files" in found["driver"]
    assert found["worker"] == found["driver"]


def test_without_the_token_nothing_is_submitted(head, project):
    (head.folder / "wrong").write_text(secrets.token_hex(32))
    environment = head.environment | {"RAY_AUTH_TOKEN_PATH": str(head.folder / "wrong")}
    command = [str(BIN / "ray"), "job", "submit", "--address", head.address, "--", "true"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "uth" in done.stdout + done.stderr


def test_an_error_of_the_config_ends_the_job_with_its_sentence(head, project):
    done = head.submit(project, "vidalign", "align", "nothing.yaml", timeout_s=300)
    assert done.returncode != 0
    assert "no config file at nothing.yaml" in done.stdout + done.stderr


@pytest.mark.long
def test_a_job_that_is_stopped_ends_at_once_and_leaves_no_endpoint(head, project):
    """Ray gives a job that it stops three seconds, and Serve takes longer."""
    [port], name = free_ports(1), "stopped"
    head.job(
        "submit", "--no-wait", "--submission-id", name, "--working-dir", str(project), "--",
        "vidalign", "serve", str(ROOT / "examples/shapes/model"), f"serve.port={port}", "model.dtype=float32"
    )  # fmt: skip
    deadline = time.monotonic() + START_TIMEOUT_S
    while not answers(f"http://127.0.0.1:{port}/ready"):
        assert time.monotonic() < deadline, head.job("logs", name)[-4000:]
        time.sleep(1)
    assert any("Serve" in line for line in head.at_work())
    began = time.monotonic()
    head.job("stop", name)
    assert time.monotonic() - began < 15
    assert "STOPPED" in head.job("status", name).upper()
    while (left := head.at_work()) and time.monotonic() < began + 30:
        time.sleep(0.5)
    assert not left
    assert not answers(f"http://127.0.0.1:{port}/ready")


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def finished(head, project, shapes, small_config, tmp_path_factory) -> pathlib.Path:
    """The run of a small job on rows of every shape."""
    folder = tmp_path_factory.mktemp("mixed")
    raw = yaml.safe_load(small_config.read_text())
    raw["data"] = write_mixed(shapes, folder)
    raw["run_dir"] = str(folder / "run")
    raw["train"] |= {"zero_stage": 1, "log_every": 1}
    (project / "align.yaml").write_text(yaml.safe_dump(raw))
    done = head.submit(project, "vidalign", "align", "align.yaml", timeout_s=ALIGN_TIMEOUT_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return folder / "run"


@pytest.mark.timeout(ALIGN_TIMEOUT_S + 60)
def test_a_small_align_job_with_uploaded_code(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["videos"]["decoded"] > 0
    assert summary["pairs"]["kept"] > 0
    assert summary["accuracy"] is None  # no data.eval: serving and evaluation have tests of their own
    assert (finished / "rounds/0/model/model.safetensors").is_file()
    assert (finished / "report/index.html").is_file()


def test_every_shape_is_answered_paired_and_trained_on(finished):
    responses = files.read_table(finished / "rounds/0/responses/responses.parquet", Response)
    assert len({response.example_id for response in responses}) == 20
    quarantined = files.read_table(finished / "rounds/0/quarantine/quarantine.parquet", QuarantineRow)
    assert sorted(row.reason for row in quarantined) == ["out_of_bounds", "truncated"]
    assert any("frame_3.png" in row.message for row in quarantined)
    pairs = files.read_table(finished / "rounds/0/pairs/pairs.parquet", PreferencePair)
    contexts = [pair.context for pair in pairs]
    shown = {(len(c.videos), len(c.images), bool(c.turns), "#" in c.visuals[0]) for c in contexts}
    assert shown == {(1, 0, True, False), (2, 0, False, False), (1, 0, False, True), (1, 1, False, False)}
    summary = files.read_json(finished / "summary.json")
    assert summary["pairs"]["dropped"]["video_quarantined"] == 2
    assert summary["log_likelihood"]["truth"]["start"] < 0
    page = (finished / "report/index.html").read_text(encoding="utf-8")
    assert "video 2, " in page or "image 1" in page
