"""What is wrong with a node is found before work is placed there, and is said with the node's name."""

import dataclasses
import os
import pathlib
import shutil
import subprocess

import pytest

from cluster import preflight
from cluster.preflight import NodeWatch, faults, sentence, wanted
from vidalign.errors import ConfigError


@pytest.fixture
def places(tmp_path) -> pathlib.Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "a.mp4").write_bytes(b"x")
    return tmp_path


@pytest.fixture
def has(places) -> preflight.Wanted:
    videos = ["s3://bucket/b.mp4", str(places / "a.mp4")]
    return wanted({"run_dir": places / "run"}, model=str(places / "model"), videos=videos)


def test_nothing_is_wrong_with_the_drivers_own_machine(has, places):
    assert faults(has, 0) == []
    assert [path.name for path in (places / "run").iterdir()] == [preflight.IDENTITY], "a test file was left behind"
    assert wanted({"run_dir": places / "run"}).folders == has.folders, "it is known by the same for ever"


def test_each_fault_is_named(has, places, monkeypatch):
    marked = places / "run" / preflight.IDENTITY
    mark = marked.read_text()
    marked.write_text("another folder's")
    assert "has another folder at run_dir=" in only(faults(has, 0))
    marked.unlink()
    assert "does not see the driver's run_dir=" in only(faults(has, 0))
    shutil.rmtree(places / "run")
    assert "does not see the driver's run_dir=" in only(faults(has, 0))
    (places / "run").mkdir()
    marked.write_text(mark)
    (places / "model" / "config.json").write_text('{"another": 1}')
    assert "another model" in only(faults(has, 0))
    (places / "model" / "config.json").unlink()
    assert "has no model at" in only(faults(has, 0))
    (places / "model" / "config.json").write_text("{}")
    (places / "a.mp4").unlink()
    assert "does not see the video" in only(faults(has, 0))
    (places / "a.mp4").write_bytes(b"x")
    older = dataclasses.replace(has, versions={**has.versions, "torch": "1.0", "nowhere": "3"})
    said = only(faults(older, 0))
    assert f"torch {has.versions['torch']}, not 1.0" in said
    assert "nowhere not at all, not 3" in said
    monkeypatch.setattr(preflight, "MIN_DISK", 2**60)
    assert "GiB left in" in only(faults(has, 0))


def test_a_folder_that_can_only_be_read_is_named(has, places, monkeypatch):
    def read_only(**_: object) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert "cannot write to run_dir=" in only(faults(has, 0))
    with pytest.raises(ConfigError, match="cannot be written"):
        wanted({"run_dir": places / "a.mp4"})


def test_gpus_that_ray_offers_and_the_machine_has_not(has, monkeypatch, tmp_path):
    gpus = dataclasses.replace(has, uses_gpus=True)
    assert faults(gpus, 0) == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: x)'\n")
    smi.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(smi))
    assert any("has 1 working GPUs of the 2 that its Ray offers" in fault for fault in faults(gpus, 2))
    assert not any("working GPUs" in fault for fault in faults(gpus, 1))

    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr("subprocess.run", hangs)
    assert any("nvidia-smi hangs" in fault for fault in faults(gpus, 1))


def test_nodes_are_checked_once_and_those_that_come_too():
    nodes = [node("a", 4), node("head", 0), node("b", 2, gpus=1)]
    asked = []

    def ask(new):
        asked.append(dict(new))
        return {name: ["has no model at /m"] if name in "bd" else [] for name in new}

    watch = NodeWatch(ask, lambda: nodes)
    assert watch.look() == {"10.0.0.b": ["has no model at /m"]}
    assert watch.look() == {}
    nodes += [node("c", 1), node("d", 1), node("e", 1, alive=False)]
    assert watch.look() == {"10.0.0.d": ["has no model at /m"]}
    assert asked == [{"a": 0, "b": 1}, {"c": 0, "d": 0}]
    assert watch.found.keys() == {"10.0.0.b", "10.0.0.d"}
    assert sentence(watch.found) == "node 10.0.0.b has no model at /m; node 10.0.0.d has no model at /m"
    assert sentence({str(n): ["x"] for n in range(5)}).endswith("node 2 x; and 2 more nodes")


def node(name: str, cpus: int, gpus: int = 0, *, alive: bool = True) -> dict:
    resources = {key: value for key, value in (("CPU", cpus), ("GPU", gpus)) if value} | {"memory": 1e9}
    return {"NodeID": name, "Alive": alive, "Resources": resources, "NodeManagerAddress": f"10.0.0.{name}"}


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]
