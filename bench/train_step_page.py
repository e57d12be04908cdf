"""The part of docs/performance.md that bench/train_step.py writes, and what is compared in it."""

from __future__ import annotations

from typing import Any

from bench.pages import goal_line, versions_line
from bench.turns import Ratio

RATIOS = {4: 8, 16: 4, 64: 1}  # prompt tokens a response token: pairs a step
RESPONSE = 48  # tokens
MEMORY_RATIO = 16
GOALS = {"two": 1.8, "three": 2.6, "TRL's way": 2.4}  # speed-ups at MEMORY_RATIO
MEMORY_GOAL = 0.6
AGAINST = {
    "masked": "packed",
    "two": "packed",
    "three": "packed",
    "two + live": "packed, cached reference",
    "TRL's way": "packed, cached reference",
}


def page(found: dict[str, Any]) -> str:
    """The Markdown part: one row a ratio and variant."""
    rows = []
    for row in found["rows"]:
        for name, values in row["speedup"].items():
            ratio, limit = Ratio(**values), row["limit"][name]
            reached = f"{limit:.2f}x | {ratio.median / limit:.0%}" if limit else "| "
            rows.append(f"| {row['ratio']}:1 | {name} | {ratio} | {reached} |")
    peaks, length = found.get("peak_mib", {}), found.get("num_response_tokens", RESPONSE)
    memory_rows = [
        f"| {name} | {peaks[ours]:,.0f} MiB | {peaks[name]:,.0f} MiB | {peaks[ours] / peaks[name]:.2f} |"
        for name, ours in AGAINST.items()
        if name in peaks
    ]
    return "\n".join(
        [
            "## Training step",
            "",
            f"Written by `vidalign bench train` on {found['device']}, {found['threads']} threads, {found['dtype']}; text model of "
            f"{found['num_parameters'] / 1e6:.0f}M parameters and {found['vocabulary']:,} tokens, {length} tokens a response, "
            f"{', '.join(f'{count} at {ratio}:1' for ratio, count in RATIOS.items())} pairs a step; medians of {found['rounds']} "
            "turns (minimum to maximum). Ours, all pairs packed in one row with the prompt computed once, against: *masked*, "
            "the same row under one [T, T] mask; *two*, a row a response; *three*, the ground truth as a third; *two + live*, a live "
            "reference model beside it, while ours reads the reference from its cache; *TRL's way*, the same with logits of every "
            "token. The limit counts the text model's tokens.",
            "",
            "| prompt : response | against | speed-up | limit | reached |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Peak memory of a step at {MEMORY_RATIO}:1 over that of the process before, models, gradients and references included:",
            "",
            "| against | ours | theirs | ratio |",
            "|---|---|---|---|",
            *memory_rows,
            "",
            "Goals:",
            "",
            *goals(found),
            "",
            f"{versions_line('torch', 'transformers')}. Only run on CPUs.",
            "",
        ]
    )


def goals(found: dict[str, Any]) -> list[str]:
    """Where each goal is reached."""
    reached, at_ratio = {}, {}
    for row in found["rows"]:
        for name, values in row["speedup"].items():
            if limit := row["limit"][name]:
                reached[f"*{name}* at {row['ratio']}:1"] = values["median"] / limit
            if row["ratio"] == MEMORY_RATIO:
                at_ratio[name] = values["median"]
    lines = [goal_line("at least 0.9x the limit", reached, 0.9)]
    lines += [
        goal_line(f"at {MEMORY_RATIO}:1 at least {goal:g}x as fast as *{name}*", {name: at_ratio[name]}, goal)
        for name, goal in GOALS.items()
    ]
    peaks = found.get("peak_mib", {})
    if peaks:
        times = {name: peaks[name] / peaks[ours] for name, ours in AGAINST.items() if name in peaks}
        lines.append(
            goal_line(
                f"memory at most {MEMORY_GOAL:g} of the other's, which is then at least {1 / MEMORY_GOAL:.2f}x ours",
                times,
                1 / MEMORY_GOAL,
            )
        )
    return lines
