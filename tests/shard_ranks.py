"""Two CPU ranks that divide packed rows, against one that computes them whole: log-probs, KL and gradients of tiny models.

    python tests/shard_ranks.py RANK FOLDER

Rank 0 writes {family: {"logps", "kl", "hidden", "squares", "gradient": largest differences}} to FOLDER/out.json.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import pathlib
import sys
from typing import Any

import torch
import torch.distributed as dist
from test_shared_prefix import ARCHITECTURES

from vidalign.model import families, sequence_parallel, shared_prefix
from vidalign.model.batch import collate_packed
from vidalign.model.policy import ResponseScorer
from vidalign.model.positions import correct_positions

# The first row's responses are all in the second rank's share; the second row has an odd number of tokens.
ROWS = {
    "late": [([20, 21, 22, 1], [23, 1])],
    "odd": [([20, 21, 22, 1], [23, 1]), ([24, 1], [25, 26, 27, 28, 1])],
}


def largest(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-3))


def compare(name: str, shards: sequence_parallel.Shards, *, checkpointing: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model, prompts = ARCHITECTURES[name]()
    model.model.language_model.requires_grad_(True)
    for tower in families.vision_towers(model):
        tower.requires_grad_(False)
    correct_positions(model)
    twin = copy.deepcopy(model)
    correct_positions(twin)
    number = shared_prefix.numbering(model)
    if checkpointing:
        for each in (model, twin):
            each.gradient_checkpointing_enable({"use_reentrant": False})
    whole = ResponseScorer(model, packed=True, compares=True, squares=True).train()
    shared = ResponseScorer(twin, packed=True, compares=True, squares=True, shards=shards).train()
    found: dict[str, Any] = {}
    for row, responses in ROWS.items():
        shown = [dataclasses.replace(prompt, positions=number(prompt)) for prompt in prompts[: len(responses)]]
        batch = collate_packed(list(zip(shown, responses, strict=True)))
        chosen = sum(len(each[0]) for each in responses)
        reference = torch.randn(chosen, model.config.get_text_config().hidden_size)
        made = []
        for scorer in (whole, shared):
            scorer.zero_grad()
            logps, kl, hidden, squares = scorer(batch.inputs, batch.labels, reference, batch.sources)
            (logps.square().sum() + kl.sum()).backward()
            made.append((logps.detach(), kl.detach(), hidden.detach(), squares))
        parts = ("logps", "kl", "hidden", "squares")
        found[row] = {part: largest(made[1][n], made[0][n]) for n, part in enumerate(parts)}
        differences = []
        for one, other in zip(whole.model.parameters(), shared.model.parameters(), strict=True):
            if one.grad is None:
                assert other.grad is None or not other.grad.any()
                continue
            mean = other.grad.clone()
            dist.all_reduce(mean)  # DeepSpeed's mean over all ranks
            differences.append(largest(mean / shards.count, one.grad))
        found[row]["gradient"] = max(differences)
    return found


def main(rank: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=int(rank), world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    shards = sequence_parallel.shards_of(2)
    assert shards is not None
    found = {}
    for name in ("qwen2_vl", "qwen2_5_vl", "llava_onevision"):
        for checkpointing in (False, True):
            found[f"{name}, checkpointing {checkpointing}"] = compare(name, shards, checkpointing=checkpointing)
    if rank == "0":
        pathlib.Path(folder, "out.json").write_text(json.dumps(found))
    dist.barrier()  # a rank that ends while the other still talks to it may abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
