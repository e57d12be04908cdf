"""What a machine with GPUs needs beside the packages: a driver that is new enough, Python's headers, NCCL."""

from __future__ import annotations

import pathlib
import re
import sysconfig

from cluster.finding import Finding

DRIVER = pathlib.Path("/proc/driver/nvidia/version")
# The oldest driver for a CUDA version, https://docs.nvidia.com/cuda/cuda-toolkit-release-notes (minor version compatibility).
OLDEST_DRIVER = {12: 525, 13: 580}


def diagnose_gpu(torch_cuda: str | None) -> list[Finding]:
    """The findings of a machine with an NVIDIA driver; none on others. `torch_cuda`: what torch was built for."""
    if not DRIVER.is_file():
        return []
    return [
        check_driver(driver_version(DRIVER.read_text()), torch_cuda),
        check_headers(pathlib.Path(sysconfig.get_path("include")) / "Python.h"),
        check_nccl(torch_cuda, nccl_version()),
    ]


def driver_version(text: str) -> str | None:
    """The version in /proc/driver/nvidia/version, such as "580.65.06"."""
    found = re.search(r"\b(\d{3,4}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


def check_driver(version: str | None, torch_cuda: str | None) -> Finding:
    """Whether the driver can run the CUDA version that torch was built for."""
    if version is None:
        return Finding(name="driver", ok=False, needed=False, detail="its version cannot be read", fix="run nvidia-smi")
    oldest = OLDEST_DRIVER.get(int(torch_cuda.split(".")[0])) if torch_cuda else None
    if oldest and int(version.split(".")[0]) < oldest:
        return Finding(
            name="driver",
            ok=False,
            detail=f"{version}, but torch was built for CUDA {torch_cuda}, which needs driver {oldest} or newer",
            fix=f"update the NVIDIA driver to {oldest} or newer",
        )
    return Finding(name="driver", ok=True, detail=version)


def check_headers(header: pathlib.Path) -> Finding:
    """Whether Triton, which compiles for GPUs against Python's headers, finds them."""
    if header.is_file():
        return Finding(name="python headers", ok=True, detail=str(header.parent))
    fix = "apt-get install python3-dev (of this Python's version), or use a Python that has them"
    return Finding(name="python headers", ok=False, detail=f"no {header}, which Triton compiles against", fix=fix)


def nccl_version() -> str | None:
    """The version of torch's NCCL; None without one."""
    try:
        import torch.cuda.nccl
        import torch.distributed
    except (ImportError, OSError):
        return None
    if not (torch.distributed.is_available() and torch.distributed.is_nccl_available()):
        return None
    return ".".join(map(str, torch.cuda.nccl.version()))


def check_nccl(torch_cuda: str | None, version: str | None) -> Finding:
    """Whether ranks on several GPUs can talk to one another."""
    if version is not None:
        return Finding(name="nccl", ok=True, detail=version)
    fix = "install a CUDA build of torch" if torch_cuda is None else "reinstall torch, of which NCCL is a part"
    return Finding(name="nccl", ok=False, needed=False, detail="torch has none, so training takes one GPU", fix=fix)
