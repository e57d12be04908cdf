"""Which device this is, and the two speeds that bound everything on it: copying memory, and multiplying matrices."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

from pipelines.summary import versions

GIB = 2**30


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], Any], device: torch.device, *, times: int = 10, warm_up: int = 3) -> float:
    """Wall time of a call, the device's work included."""
    seconds = []
    for number in range(-warm_up, times):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        if number >= 0:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def matmul_flops(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Operations a second of a square matrix product of random numbers."""
    a, b = (torch.randn((size, size), device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device)


def copied_bytes(device: torch.device, num_bytes: int) -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.randint(0, 255, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / median_seconds(lambda: target.copy_(source), device)


def facts(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Name, memory, driver, versions and the two speeds."""
    size, num_bytes = (256, 2**20) if quick else (8192, 2 * GIB)
    found: dict[str, Any] = {
        "device": str(device),
        "name": "CPU",
        "versions": {**versions(), "cuda": torch.version.cuda or ""},
        "matmul_flops": matmul_flops(device, torch.bfloat16, size),
        "copied_bytes_a_second": copied_bytes(device, num_bytes),
    }
    if device.type == "cuda":
        made = torch.cuda.get_device_properties(device)
        found |= {
            "name": made.name,
            "memory": made.total_memory,
            "capability": f"{made.major}.{made.minor}",
            "driver": _driver(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return found


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()
