"""Log-probs and gradients on the device against the CPU's in float32: of packed rows and of separate ones."""

from __future__ import annotations

import pathlib
from typing import Any

import torch

from bench.built_in import MODEL
from bench.gpu_parts.models import Shape, make_data
from vidalign import files
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.objectives import build
from vidalign.learning.sequences import pair_group
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.logps import PairLogps, RowLogps
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import cached_processor
from vidalign.types import PreferencePair

SHAPE = Shape(text={}, vision={}, tied=True, num_pairs=4, num_frames=8, side=56, response=24)
CPU = torch.device("cpu")
# "float32" is what is compared with; TF32 is off, as it is by default.
VARIANTS = {
    "float32, packed": (torch.float32, True, False),
    "float32, separate": (torch.float32, False, False),
    "bfloat16, packed": (torch.bfloat16, True, False),
    "bfloat16, separate": (torch.bfloat16, False, False),
    "bfloat16, packed, float32 output layer": (torch.bfloat16, True, True),
}


def numbers(work: pathlib.Path, device: torch.device) -> dict[str, Any]:
    """The largest difference of a token's log-prob (nats), and the relative one of all gradients, by variant."""
    data = work / "numbers"
    make_data(data, SHAPE)
    logps, gradient = _computed(data, CPU, torch.float32, packed=False, float32_head=False)
    found = {}
    for name, (dtype, packed, float32_head) in VARIANTS.items():
        own_logps, own_gradient = _computed(data, device, dtype, packed=packed, float32_head=float32_head)
        found[name] = {
            "logp": (own_logps - logps).abs().max().item(),
            "gradient": ((own_gradient - gradient).norm() / gradient.norm()).item(),
        }
    return {"variants": found, "num_tokens": len(logps), "num_parameters": len(gradient)}


def _computed(
    data: pathlib.Path, device: torch.device, dtype: torch.dtype, *, packed: bool, float32_head: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs [N] of the response tokens, and the gradient of a loss in all parameters, end to end; float32 on the CPU."""
    config = MODEL.model_copy(update={"dtype": str(dtype).removeprefix("torch.")})
    model = load_policy(config)
    source = BatchSource(
        frames=files.read_json(data / "frames.json"),
        processor=cached_processor(config.path),
        plain_prompt="{question}",
        max_model_len=config.max_model_len,
        number=shared_prefix.numbering(model) if packed else None,
    )
    groups = [pair_group(pair) for pair in files.read_table(data / "pairs.parquet", PreferencePair)]
    batch = source.batch(groups).to(device, dtype)
    scorer = ResponseScorer(model, packed=packed, float32_head=float32_head).to(device)
    logps = scorer(batch.inputs, batch.labels, None, batch.sources)[0]
    mask = batch.labels != IGNORED
    pairs = PairLogps.from_rows(RowLogps(logps=logps, mask=mask), num_pairs=len(groups))
    build("leanpo", {})(pairs, None).value.backward()
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad).detach().float().cpu().flatten() for p in scorer.parameters()
    ]
    return logps[mask].detach().float().cpu(), torch.cat(parts)
