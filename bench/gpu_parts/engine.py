"""vLLM on the device: how long it takes to start, whether it computes what training computes, how busy rollouts keep it.

The built-in model is compared in float32. The other figures are of a 3B model with random weights: its replies never end by
themselves, so their lengths are those that are asked for.
"""

from __future__ import annotations

import gc
import pathlib
import shutil
import time
from typing import Any

import torch

from actors.engine import VllmEngine
from bench.built_in import MODEL
from bench.engine_load import Load, measure, nudged
from bench.gpu_parts.facts import GIB
from bench.gpu_parts.models import SHAPES, make_model
from bench.videos import make_clip
from vidalign.config.run import ModelConfig
from vidalign.model.batch import IGNORED, collate
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import cached_processor, render_prompt
from vidalign.recipes.engine import Completion, Request
from vidalign.video.clip import Clip

NUM_COMPARED = 8  # replies
LOAD = Load(num_examples=128, chunk=64, num_candidates=4, num_frames=16, side=224, median_tokens=60)
SCORED = Load(num_frames=32, side=448)  # 4,096 tokens
QUICK = Load(num_examples=4, chunk=2, num_frames=4, side=112, median_tokens=12)


CASES = ("built-in, float32", "3B, log-probs", "3B, rollouts")
QUICK_CASES = ("built-in, float32", "tiny, log-probs", "tiny, rollouts")


def engine(work: pathlib.Path, device: torch.device, case: str) -> dict[str, Any]:
    """One of `CASES` or `QUICK_CASES`: differences of log-probs from training's, or what `bench.engine_load` measures.

    Each has a process of its own, because an engine keeps its memory as long as its process lives.
    """
    if case == CASES[0]:
        return against_training(MODEL, device, side=56, num_frames=8, max_new_tokens=24)
    name, _, what = case.partition(", ")
    shape, on_gpu = SHAPES[name], device.type == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    model = make_model(work / name if on_gpu else work / f"{name} {dtype}", shape, device=device, dtype=dtype)
    found: dict[str, Any] = {"model": name, "dtype": dtype}
    if what == "log-probs":
        return found | against_training(model, device, side=shape.side, num_frames=shape.num_frames, max_new_tokens=48)
    load, scored = (QUICK, QUICK) if name == "tiny" else (LOAD, SCORED)
    args: dict[str, Any] = {"gpu_memory_utilization": 0.4} if on_gpu else {}
    other = work / f"{name} nudged"
    shutil.rmtree(other, ignore_errors=True)
    nudged(model.path, other)
    return found | measure(model, str(other), num_gpus=int(on_gpu), load=load, scored=scored, rounds=1, **args)


def against_training(
    model: ModelConfig, device: torch.device, *, side: int, num_frames: int, max_new_tokens: int
) -> dict[str, Any]:
    """Sample replies to videos of noise with vLLM, and compute their log-probs as training does."""
    clips = [make_clip(num_frames, side, seed) for seed in range(NUM_COMPARED)]
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    began = time.perf_counter()
    args = {"enforce_eager": True, "gpu_memory_utilization": 0.3, "kv_cache_memory_bytes": 4 * GIB}
    running = VllmEngine(
        model, model.path, num_gpus=int(device.type == "cuda"), seed=0, engine_args=args if device.type == "cuda" else {}
    )
    found: dict[str, Any] = {"start_s": time.perf_counter() - began}
    if free:
        found["held_gib"] = (free - torch.cuda.mem_get_info(device)[0]) / GIB
    requests = [
        Request(prompt="Describe.", clip=clip, seed=n, temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens)
        for n, clip in enumerate(clips)
    ]
    replies = running.generate(requests)
    del running
    gc.collect()
    expected = logps_of_training(model, device, clips, replies)
    differences = torch.tensor(
        [abs(a - b) for reply, own in zip(replies, expected, strict=True) for a, b in zip(reply.log_probs, own, strict=True)]
    )
    return {
        **found,
        "num_tokens": len(differences),
        "largest": differences.max().item(),
        "mean": differences.mean().item(),
    }


def logps_of_training(
    model: ModelConfig, device: torch.device, clips: list[Clip], replies: list[Completion]
) -> list[list[float]]:
    """Log-probs of the replies' tokens, reply by reply."""
    dtype = getattr(torch, model.dtype)
    processor = cached_processor(model.path)
    scorer = ResponseScorer(load_policy(model)).to(device).eval()
    made = []
    for clip, reply in zip(clips, replies, strict=True):
        batch = collate([(render_prompt(processor, "Describe.", clip), list(reply.token_ids))], pad_id=0).to(device, dtype)
        with torch.inference_mode():
            logps = scorer(batch.inputs, batch.labels, None, batch.sources)[0]
        made.append(logps[batch.labels != IGNORED].float().tolist())
    return made
