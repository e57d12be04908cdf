"""A whole `vidalign align` of the built-in model on the device: which stages ran there, how long they took, what came out."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import torch

from bench.built_in import MAX_NEW_TOKENS, make_run
from bench.gpu_parts.facts import GIB
from vidalign import files


def align(work: pathlib.Path, device: torch.device) -> dict[str, Any]:
    """Run it by its command, in a process as a user would."""
    folder = work / "align"
    shutil.rmtree(folder, ignore_errors=True)
    args = (
        {"enforce_eager": True, "gpu_memory_utilization": 0.2, "kv_cache_memory_bytes": 4 * GIB}
        if device.type == "cuda"
        else {}
    )
    raw = make_run(
        folder,
        {"train": 48, "probe": 8, "heldout": 24},
        recipe={"num_candidates": 2, "max_new_tokens": MAX_NEW_TOKENS},
        rollout={"batch_size": 16, "engine_args": args},
        serve={"engine_args": args},
        train={"learning_rate": 1e-4, "batch_size": 8, "micro_batch_size": 4, "num_monitored": 8},
        evaluate={"max_new_tokens": MAX_NEW_TOKENS},
    )
    raw["data"]["eval"] = raw["data"].pop("heldout")
    raw["model"]["dtype"] = "bfloat16" if device.type == "cuda" else "float32"
    files.write_json(folder / "config.json", raw)
    began = time.monotonic()
    command = [sys.executable, "-m", "pipelines.cli", "align", str(folder / "config.json")]
    if code := subprocess.call(command):  # what it prints is in the part's log
        raise SystemExit(f"vidalign align ended with {code}")
    run = pathlib.Path(raw["run_dir"])
    summary = files.read_json(run / "summary.json")
    parts = [files.read_json(path) for path in sorted((run / "rounds/0/responses/parts").glob("*.json"))]
    return {
        "wall_s": time.monotonic() - began,
        "stages_s": summary["wall_s"],
        "pairs": summary["pairs"],
        "accuracy": summary["accuracy"],
        "policy": summary["policy"],
        "engine_s": [part["engine_s"] for part in parts],
    }
