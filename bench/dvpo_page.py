"""The part of docs/results.md on a value model in the place of rewards, from what `bench.dvpo` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.quality.tables import cell

GOAL = 0.85  # of the held-out pairs


def page(found: dict[str, Any]) -> str:
    """This script's part of the page."""
    value, compared = found["value"], found["value"]["compared"]
    low, high = value["interval"]
    trained = f"an adapter of rank {value['lora_rank']}" if value["lora_rank"] else "all weights"
    reached = "met" if value["accuracy"] >= GOAL else "missed"
    lines = [
        "## A value model in the place of rewards (DVPO)",
        "",
        "Written by `python -m bench.dvpo` from runs as in `configs/shapes-dvpo.yaml` and `configs/shapes-grpo.yaml`; every "
        "number, and the values of each token of every held-out pair, are in `bench/results/dvpo.json`. Only run on CPUs. The value "
        "model below is that of seed 0.",
        "",
        f"A value model was trained on {value['num_pairs']} pairs of recipe {value['recipe']} ({trained}, rate "
        f"{value['learning_rate']:g}, {value['num_epochs']} epochs). Of {value['num_heldout']} pairs on other videos it ranks "
        f"**{value['accuracy']:.1%}** as the data does ({low:.0%} to {high:.0%} at 95 %). The goal of {GOAL:.0%} was {reached}.",
        "",
        f"The two responses of {compared} of these pairs first differ before their end. At that token the value of the rejected "
        f"response changes by {value['mean_rejected']:+.2f} in the mean, that of the chosen one by {value['mean_chosen']:+.2f}. It "
        f"falls in {value['falls']} of {compared} rejected responses, further than in the chosen one in {value['falls_more']}, and in "
        f"{value['largest_fall']} it is the largest fall of the response.",
        "",
    ]
    own = found["own"]
    if own["auc"] is not None:
        lines += [
            f"Of the policy's own replies to training questions, {own['right']} right and {own['wrong']} wrong, a right one ends with "
            f"the higher value in **{own['auc']:.1%}** of the comparisons with a wrong one (50 % is chance).",
            "",
        ]
    if not found["policies"]:
        return "\n".join([*lines, "No policy that was trained by it has been evaluated yet."]) + "\n"
    lines += [
        "| policy | seed | rate, epochs | prompts answered | tokens sampled, by objective | pairs that its value model ranks | "
        "held-out accuracy (95 %) | base |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in found["policies"]:
        made = ", ".join(f"{name}: {count:,}" for name, count in each["tokens"].items())
        low, high = each["interval"]
        accuracy = f"{each['aligned']:.1%} ({low:.1%} to {high:.1%}), {each['num_questions']} questions"
        rate = f"{each['learning_rate']:g}, {each['num_epochs']}"
        prompts = f"{each['prompts'].get(each['objective'], 0):,}"
        known = value["accuracy"] if (each["objective"], each["seed"]) == ("dvpo", 0) else each.get("ranked")
        value_model = f"{known:.1%}" if known is not None else ""
        cells = [
            f"`{each['objective']}`",
            str(each["seed"]),
            rate,
            prompts,
            made,
            value_model,
            accuracy,
            f"{each['base']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *beside_groups(found["policies"])]) + "\n"


def beside_groups(policies: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whether each run of DVPO is within the interval of the GRPO run of its seed, and with which share of its tokens.

    Of several GRPO runs the one that sampled most counts, of any seed where its own has none.
    """
    groups = sorted((each for each in policies if each["objective"] == "grpo"), key=lambda each: each["tokens"]["grpo"])
    runs = [each for each in policies if each["objective"] == "dvpo"]
    if not groups:
        return []
    lines = ["", "Goal: the accuracy of GRPO's interval with an eighth of its generated tokens.", ""]
    beside = []
    for each in runs:
        most = next((other for other in reversed(groups) if other["seed"] == each["seed"]), groups[-1])
        beside.append(most)
        low, high = most["interval"]
        share = most["tokens"]["grpo"] / each["tokens"]["dvpo"]
        place = "below" if each["aligned"] < low else "above" if each["aligned"] > high else "within"
        verdict = "missed" if place == "below" else f"reached in accuracy, with 1/{share:.1f} of the tokens"
        lines.append(
            f"- DVPO, seed {each['seed']}: {each['aligned']:.1%} is {place} the interval of GRPO of seed {most['seed']} "
            f"({low:.1%} to {high:.1%}; {most['tokens']['grpo']:,} tokens): {verdict}."
        )
    if len({each["seed"] for each in beside}) == len(runs) > 1:
        gains = [100 * (ours["aligned"] - theirs["aligned"]) for ours, theirs in zip(runs, beside, strict=True)]
        lines.append(
            f"- DVPO minus GRPO, paired by seed: {cell(gains)} points over {len(gains)} seeds; DVPO "
            f"{cell([100 * each['aligned'] for each in runs])} %, GRPO {cell([100 * each['aligned'] for each in beside])} %."
        )
    return lines
