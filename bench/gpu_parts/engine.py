"""vLLM on the device: how long it takes to start, whether it computes what training computes, and what scoring costs.

The built-in model is compared in float32. The other figures are of a 3B model with random weights: its replies never end by
themselves, so their lengths are those that are asked for.
"""

from __future__ import annotations

import gc
import pathlib
import time
from typing import Any

import torch

from actors.engine import VllmEngine
from bench.built_in import MODEL
from bench.gpu_parts.facts import GIB
from bench.gpu_parts.models import SHAPES, make_clip, make_model
from vidalign.config.run import ModelConfig
from vidalign.model.batch import IGNORED, collate
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.model.rendering import cached_processor, render_prompt
from vidalign.recipes.engine import Completion, Request
from vidalign.video.clip import Clip

NUM_COMPARED = 8  # replies
NUM_SCORED = 12  # replies to one video


def engine(work: pathlib.Path, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Differences of log-probs in float32 and bfloat16, seconds of starts, and how much more 12 scores take than one."""
    found: dict[str, Any] = {"float32": against_training(MODEL, device, side=56, num_frames=8, max_new_tokens=24)}
    name = "tiny" if quick else "3B"
    shape = SHAPES[name]
    dtype = "float32" if device.type == "cpu" else "bfloat16"
    model = make_model(work / f"{name} {dtype}" if quick else work / name, shape, device=device, dtype=dtype)
    return {
        **found,
        "model": name,
        "dtype": dtype,
        **against_training(model, device, side=shape.side, num_frames=shape.num_frames, max_new_tokens=48, scores=True),
    }


def against_training(
    model: ModelConfig, device: torch.device, *, side: int, num_frames: int, max_new_tokens: int, scores: bool = False
) -> dict[str, Any]:
    """Sample replies to videos of noise with vLLM, and compute their log-probs as training does."""
    clips = [make_clip(num_frames, side, seed) for seed in range(NUM_COMPARED)]
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    began = time.perf_counter()
    args = {} if device.type == "cpu" else {"gpu_memory_utilization": 0.5}
    running = VllmEngine(model, model.path, num_gpus=int(device.type == "cuda"), seed=0, engine_args=args)
    found: dict[str, Any] = {"start_s": time.perf_counter() - began}
    if free:
        found["held_gib"] = (free - torch.cuda.mem_get_info(device)[0]) / GIB
    requests = [
        Request(prompt="Describe.", clip=clip, seed=n, temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens)
        for n, clip in enumerate(clips)
    ]
    replies = running.generate(requests)
    if scores:
        found["scoring"] = scoring(running, clips, max_new_tokens)
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


def scoring(running: VllmEngine, clips: list[Clip], length: int) -> dict[str, float]:
    """Seconds of scoring one reply and twelve replies to a video that the engine has not seen, and their ratio."""
    seconds = {}
    for count in (1, NUM_SCORED):
        taken = []
        for clip in clips[:3]:
            running.reset_caches()
            rows = [("Describe.", clip, " ".join(["red"] * (length - number))) for number in range(count)]
            began = time.perf_counter()
            running.score(rows)
            taken.append(time.perf_counter() - began)
        seconds[count] = min(taken[1:])
    return {"one_s": seconds[1], "twelve_s": seconds[NUM_SCORED], "ratio": seconds[NUM_SCORED] / seconds[1]}
