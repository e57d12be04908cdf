"""Shared by all tests. Heavy fixtures are made once a session and run one at a time.

Two threads a process at most: on few cores, processes with a thread a core each spend their time waiting for one another.
"""

import os
import pathlib

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _in_project_root(monkeypatch):
    """Configs name files relative to the project's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> pathlib.Path:
    """A small built-in data set: 48 train, 24 held-out and 8 probe questions on real MP4 files."""
    from examples.shapes.make_videos import main

    folder = tmp_path_factory.mktemp("shapes")
    main(["--out", str(folder), "--train", "48", "--heldout", "24", "--probe", "8"])
    return folder


@pytest.fixture(scope="session")
def model_path() -> str:
    return str(ROOT / "examples" / "shapes" / "model")
