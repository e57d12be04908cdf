"""A part of a script in a process of its own, so that a start, a peak of memory or a Ray is that part's alone."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def result_of(module: str, *arguments: object) -> Any:
    """Run `python -m module arguments…`; returns what its last line says, which is JSON.

    Raises:
        SystemExit: the process failed; the message ends with what it printed last.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.strip():
        said = f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        raise SystemExit(f"{' '.join(command[1:])} failed with code {done.returncode}:\n{said}")
    return json.loads(done.stdout.splitlines()[-1])


def tell(result: Any) -> None:
    """Print what `result_of` reads."""
    print(json.dumps(result), flush=True)


def device_of(name: str) -> torch.device:
    """The device that is called so; the first one where a GPU's number is left out, which a process group has to know."""
    import torch

    return torch.device(name if ":" in name or name == "cpu" else f"{name}:0")


def join_alone(device: torch.device) -> None:
    """Make this process the only rank of a process group on its device, as a training under Ray Train finds it."""
    import torch
    import torch.distributed as dist

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        dist.init_process_group("gloo")
