"""What the doctor says of a machine with GPUs, from facts."""

import pathlib
import sysconfig

import pytest

from cluster import doctor_gpu

PROC = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Release Build  (dvs-builder@U16)
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""


@pytest.mark.parametrize("version", ["580.65.06", "550.54", "1000.1.2"])
def test_the_drivers_version_is_read(version):
    assert doctor_gpu.driver_version(PROC.format(version)) == version
    assert doctor_gpu.driver_version("no such thing") is None


@pytest.mark.parametrize(
    ("driver", "cuda", "ok"),
    [
        ("580.65.06", "13.0", True),
        ("575.57.08", "13.0", False),
        ("550.54", "12.8", True),
        ("515.10", "12.8", False),
        ("515.10", None, True),
        (None, "13.0", False),
    ],
)
def test_a_driver_must_be_as_new_as_torchs_cuda(driver, cuda, ok):
    found = doctor_gpu.check_driver(driver, cuda)
    assert found.ok == ok
    if not ok and driver:
        assert "needs driver 5" in found.detail
        assert found.fix.startswith("update the NVIDIA driver to 5")


def test_triton_needs_pythons_headers(tmp_path):
    found = doctor_gpu.check_headers(tmp_path / "Python.h")
    assert not found.ok
    assert found.needed
    assert "python3-dev" in found.fix
    assert doctor_gpu.check_headers(pathlib.Path(sysconfig.get_path("include")) / "Python.h").ok


def test_ranks_on_several_gpus_need_nccl():
    assert doctor_gpu.check_nccl("13.0", "2.27.5").ok
    found = doctor_gpu.check_nccl(None, None)
    assert (found.ok, found.needed, found.fix) == (False, False, "install a CUDA build of torch")


def test_a_machine_without_a_driver_is_asked_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_gpu, "DRIVER", tmp_path / "none")
    assert doctor_gpu.diagnose_gpu("13.0") == []
    (tmp_path / "version").write_text(PROC.format("470.1"))
    monkeypatch.setattr(doctor_gpu, "DRIVER", tmp_path / "version")
    assert [finding.name for finding in doctor_gpu.diagnose_gpu("13.0")] == ["driver", "python headers", "nccl"]
