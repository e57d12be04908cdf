"""A run leaves the system's folder for temporary files as it found it."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
import yaml
from conftest import ROOT, free_port

from cluster.session import forget_session

# What is kept on purpose, because the next run is faster with it, and is of one size however many runs there are.
CACHES = ("torchinductor_", "vidalign-served-frames-", "vidalign-engine-start-")


def test_a_session_that_is_forgotten_takes_its_link_with_it_and_no_other(tmp_path):
    for name in ("session_1", "session_2"):
        (tmp_path / name / "logs").mkdir(parents=True)
    latest = tmp_path / "session_latest"
    latest.symlink_to(tmp_path / "session_2")
    forget_session(tmp_path / "session_1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["session_2", "session_latest"]
    forget_session(tmp_path / "session_2")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def short():
    """A folder with a short name, for the sockets below it."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="va", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.heavy
@pytest.mark.long
def test_a_whole_run_leaves_nothing(small_config, short, tmp_path):
    raw = yaml.safe_load(small_config.read_text())
    raw |= {"run_dir": str(tmp_path / "run"), "cluster": {"address": "local"}, "serve": {"port": free_port()}}
    raw["data"]["limit"], raw["data"]["eval_limit"] = 12, 8
    config = tmp_path / "align.yaml"
    config.write_text(yaml.safe_dump(raw))
    proxies = set(pathlib.Path("/tmp").glob("vidalign-????????"))
    done = subprocess.run(
        [sys.executable, "-m", "vidalign", "align", str(config)],
        cwd=ROOT, env={**os.environ, "TMPDIR": str(short)}, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    left = [path for path in short.rglob("*") if path.is_file() or path.is_socket()]
    left = [path for path in left if not path.relative_to(short).parts[0].startswith(CACHES)]
    assert [
        str(path.relative_to(short)) for path in left if "prom_metrics" not in path.name and "ray_current" not in path.name
    ] == []
    assert set(pathlib.Path("/tmp").glob("vidalign-????????")) <= proxies
