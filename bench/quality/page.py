"""This script's part of docs/results.md and its plots, from the results on disk. Says nothing that was not measured."""

from __future__ import annotations

import math
import pathlib
import statistics
from typing import Any

from bench.intervals import interval
from bench.pages import RESULTS, Output
from bench.quality.arms import BASE
from bench.quality.run import Job
from bench.quality.shapes import SHAPES
from bench.quality.sweep import tried
from bench.quality.tables import Rows, cell, change, column, finished, table
from pipelines.summary import versions
from vidalign import files

COLOURS = ("#2a6f97", "#c1554e", "#6a994e", "#7b5ea7", "#d08c38", "#4f5d75")


def write_page(root: pathlib.Path, rates: dict[str, float], out: Output) -> None:
    """Write the part, and its plots where at least one method is finished."""
    base = files.read_json(Job(BASE).folder(root) / "result.json")
    runs = {name: found for name in SHAPES.arms if (found := finished(root, name, rates.get(SHAPES.arms[name].method)))}
    parts = [
        _head(base, runs),
        _accuracy_table(base, runs),
        _gains(base, runs),
        _category_table(base, runs),
        _displacement_table(runs),
        _sweep_table(root, rates),
        _pairs_table(root, runs),
        _settings(),
    ]
    if runs:
        plot(base, runs, out.docs / "results.png")
        parts.insert(2, ["![Held-out accuracy, displacement and divergence by method](results.png)"])
    out.write_part(RESULTS, "quality", "\n\n".join("\n".join(part) for part in parts if part))


def _head(base: dict[str, Any], runs: dict[str, Rows]) -> list[str]:
    num_seeds = sorted({len(rows) for rows in runs.values()})
    seeds = f"{num_seeds[0]} to {num_seeds[-1]}" if len(num_seeds) > 1 else "".join(map(str, num_seeds))
    return [
        "## Methods and ablations",
        "",
        f"Written by `python -m bench.quality`, from {seeds} seeds of each arm. A seed changes what is sampled, the pairs and the "
        f"order of training. {SHAPES.sizes['heldout']} held-out questions on videos that no run trained on or chose a learning "
        "rate by, answered greedily, each answer scored by the rule of its kind (docs/evaluation.md): the option, yes or no, "
        "or the words that it says; what no rule can tell counts as wrong. Every arm trains for the same number of epochs with "
        f"the same batch; the learning rate of each method is the best of {', '.join(f'{rate:g}' for rate in SHAPES.rates)} on a "
        "dev split. Values are means over seeds ± half of the 95 % interval of that mean.",
        "",
        "Everything ran on CPUs, with a model of 2.5M parameters and short answers: it shows what each loss does, not what it is "
        "worth on a large model. Hound's judge is an exact rule on the true caption, because no judge model fits: an upper bound.",
        "",
        f"The base answers {100 * base['accuracy']:.1f} % of the held-out questions.",
    ]


def _accuracy_table(base: dict[str, Any], runs: dict[str, Rows]) -> list[str]:
    def row(name: str, rows: Rows) -> list[str]:
        trained = "start" in rows[0]
        return [
            name,
            str(len(rows)) if trained else "",
            column(rows, lambda r: r["accuracy"], 100),
            column(rows, lambda r: r["accuracy"] - base["accuracy"], 100) if trained else "",
            column(rows, lambda r: r["hallucination"], 100),
            column(rows, lambda r: r["perturbed_accuracy"], 100),
            column(rows, lambda r: r["perturbed_hallucination"], 100),
            column(rows, lambda r: r["kl_to_base"], digits=2) if trained else "0",
            column(rows, lambda r: r["kl_where_right"], digits=2) if trained else "0",
            column(rows, lambda r: r["num_pairs"], digits=0) if trained else "",
            column(rows, lambda r: r["train_seconds"], digits=0) if trained else "",
            column(rows, lambda r: r["peak_gib"], digits=2) if trained else "",
        ]

    header = (
        "arm",
        "seeds",
        "accuracy %",
        "minus base",
        "absent object claimed %",
        "accuracy %, perturbed video",
        "absent object claimed %, perturbed video",
        "KL to base, nats",
        "KL where the base is right",
        "pairs",
        "seconds",
        "GiB",
    )
    return [
        "### Held-out accuracy, hallucination, distance from the base",
        "",
        *table(header, [row(BASE, [base]), *(row(name, rows) for name, rows in runs.items())]),
        "",
        "Absent object claimed: share of questions on an object that is not in the video that are not answered with no. "
        "Perturbed video: a black square on the centre and frames shuffled locally, as in RRPO's rollout. KL to base: "
        "KL(base ‖ model) over the full vocabulary, summed over the tokens of the base's own answers; where the base "
        "is wrong, a method that corrects it must move. Seconds: of CPU time, one thread, "
        "training with its measurements.",
    ]


def _gains(base: dict[str, Any], runs: dict[str, Rows]) -> list[str]:
    """Paired by seed: same pairs, same order."""
    if "LeanPO" not in runs:
        return []
    ours = {row["seed"]: row["accuracy"] for row in runs["LeanPO"]}
    lines = ["### LeanPO against each other arm, by seed", ""]
    rows = [["base", cell([value - base["accuracy"] for value in ours.values()], 100), str(len(ours))]]
    for name, found in runs.items():
        theirs = {row["seed"]: row["accuracy"] for row in found}
        shared = sorted(ours.keys() & theirs.keys())
        if name != "LeanPO" and shared:
            rows.append([name, cell([ours[seed] - theirs[seed] for seed in shared], 100), str(len(shared))])
    return [*lines, *table(("LeanPO minus", "points", "seeds"), rows)]


def _category_table(base: dict[str, Any], runs: dict[str, Rows]) -> list[str]:
    names = list(base["by_category"])
    rows = [[BASE, *(f"{100 * base['by_category'][name]:.1f}" for name in names)]]
    for arm, found in runs.items():
        by_category = {name: [row["by_category"][name] for row in found] for name in names}
        rows.append([arm, *(cell(values, 100) for values in by_category.values())])
    return ["### Held-out accuracy by category, %", "", *table(("arm", *names), rows)]


def _displacement_table(runs: dict[str, Rows]) -> list[str]:
    rows = []
    for name, found in runs.items():
        two_sided = "rejected_logp" in found[0]["end"]
        rows.append(
            [
                name,
                column(found, lambda row: row["start"]["chosen_logp"], digits=3),
                column(found, change("chosen"), digits=3),
                column(found, change("rejected"), digits=3) if two_sided else "",
                column(found, change("truth"), digits=3),
                column(found, lambda row: row["end"]["both_fell"], 100) if two_sided else "",
                column(found, lambda row: row["end"]["chosen_fell"], 100),
            ]
        )
    header = ("arm", "chosen at step 0", "chosen", "rejected", "truth (probe)", "both fell %", "chosen fell %")
    return [
        "### Displacement: change of the mean log-likelihood from first to last step, nats per token",
        "",
        *table(header, rows),
    ]


def _sweep_table(root: pathlib.Path, rates: dict[str, float]) -> list[str]:
    rows = []
    for name in SHAPES.methods:
        means = {rate: statistics.fmean(values) for rate, values in tried(SHAPES, root, name).items()}
        if name in rates and all(rate in means for rate in SHAPES.rates):
            rows.append([name, *(f"{100 * means[rate]:.1f}" for rate in SHAPES.rates), f"{rates[name]:g}"])
    header = ("method", *(f"{rate:g}" for rate in SHAPES.rates), "chosen")
    seeds = "one seed" if len(SHAPES.dev_seeds) == 1 else f"{len(SHAPES.dev_seeds)} seeds"
    title = f"### Learning rates: accuracy on dev ({SHAPES.sizes['dev']} questions, {seeds}), %"
    return [title, "", *table(header, rows)]


def _pairs_table(root: pathlib.Path, runs: dict[str, Rows]) -> list[str]:
    rows = []
    for recipe in SHAPES.recipes:
        facts = [files.read_json(path) for path in sorted((root / "pairs" / recipe).glob("[0-9]/facts.json"))]
        if facts and any(SHAPES.arms[name].recipe == recipe for name in runs):
            reasons = sorted({reason for fact in facts for reason in fact["dropped"]})
            dropped = ", ".join(
                f"{reason} {cell([fact['dropped'].get(reason, 0) for fact in facts], digits=0)}" for reason in reasons
            )
            known = [value for fact in facts if (value := fact["reward_trust_correlation"]) is not None]
            rows.append(
                [
                    recipe,
                    cell([fact["kept"] for fact in facts], digits=0),
                    dropped,
                    cell(known, digits=2) if known else "",
                    cell([fact["seconds"] for fact in facts], digits=0),
                ]
            )
    header = ("recipe", "pairs kept", "examples without a pair", "rank correlation of reward and trust", "seconds")
    return [f"### Pairs from {SHAPES.sizes['train']} questions", "", *table(header, rows)]


def _settings() -> list[str]:
    arms = [
        f"- {arm.name}: recipe `{arm.recipe}`, objective `{arm.objective}` {arm.params or '(defaults)'}"
        + (f", {arm.edited}" if arm.edited else "")
        for arm in SHAPES.arms.values()
    ]
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    return ["### Settings", "", *arms, f"- training: {SHAPES.train}", f"- versions: {found}"]


def plot(base: dict[str, Any], runs: dict[str, Rows], path: pathlib.Path) -> None:
    """Three panels by method: accuracy, change of log-likelihoods, KL to base. Dots are seeds, bars 95 % intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in runs if all("kl_where_right" in row for row in runs[name])]
    figure, axes = plt.subplots(1, 3, figsize=(14, 0.42 * len(names) + 1.6), sharey=True)
    places = range(len(names))
    for place, name in zip(places, names, strict=True):
        rows = runs[name]
        for row in rows:
            axes[0].plot(100 * row["accuracy"], place, "o", color=COLOURS[0], alpha=0.35, markersize=5)
            axes[2].plot(row["kl_where_right"], place, "o", color=COLOURS[3], alpha=0.35, markersize=5)
        mean, half = interval([100 * row["accuracy"] for row in rows])
        axes[0].errorbar(mean, place, xerr=None if math.isnan(half) else half, fmt="|", color="black", markersize=12)
        axes[2].plot(statistics.fmean(row["kl_where_right"] for row in rows), place, "|", color="black", markersize=12)
        for number, (side, colour) in enumerate((("chosen", COLOURS[2]), ("rejected", COLOURS[1]), ("truth", COLOURS[4]))):
            if f"{side}_logp" in rows[0]["end"]:
                change = statistics.fmean(row["end"][f"{side}_logp"] - row["start"][f"{side}_logp"] for row in rows)
                axes[1].barh(place + 0.27 * (number - 1), change, 0.25, color=colour, label=None if place else side)
    axes[0].axvline(100 * base["accuracy"], color="grey", linestyle="--", linewidth=1)
    axes[0].annotate("base", (100 * base["accuracy"] - 0.5, -0.7), color="grey", ha="right", annotation_clip=False)
    axes[0].set_xlabel("held-out accuracy, %")
    axes[1].set_xlabel("change of log-likelihood, nats per token")
    axes[1].axvline(0, color="grey", linewidth=1)
    axes[1].set_xscale("symlog", linthresh=0.1)
    axes[2].set_xlabel("KL(base ‖ model), nats per answer,\nwhere the base is right")
    axes[2].set_xlim(left=0)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (COLOURS[2], COLOURS[1], COLOURS[4])]
    axes[1].legend(
        handles,
        ("chosen", "rejected", "truth (probe)"),
        frameon=False,
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
    )
    axes[0].set_yticks(list(places), names)
    axes[0].invert_yaxis()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
