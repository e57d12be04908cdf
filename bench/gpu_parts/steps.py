"""`bench.train_step` at the shape of a 3B model: packed rows against what trainers do otherwise, on the device."""

from __future__ import annotations

from typing import Any

import torch

from bench.train_step import SMALL, Size, measure

REAL = Size(response=128, vocabulary=151_936, hidden=2048, intermediate=11_008, num_layers=12)
RATIO = 16  # prompt tokens a response token


def steps(device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Speed-ups by variant, of a third of the layers of a 3B model: the ratios are those of a layer and of the output layer."""
    size, rounds = (SMALL, 1) if quick else (REAL, 3)
    return {**measure(RATIO, rounds, size, device, torch.bfloat16, num_pairs=2), "size": vars(size)}
