"""What the pairs of the events task are like: whether winners are better than losers, and than what the base says unasked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.quality.data import Data
from bench.quality.events_figures import figures, scores, styles
from vidalign.types import Example, PreferencePair

FIGURES = ("f1", "right", "chair_s", "omitted", "words", "f1.conclusion", "contradicts", "contradicts.reasoning")


def look(data: Data, recipe: str, seed: int, plain: Sequence[str]) -> dict[str, Any]:
    """What is to be said of the pairs of a recipe and seed; `plain`: the base's greedy answers to all training questions."""
    facts = data.facts(recipe, seed)
    kept = {name: facts[name] for name in ("kept", "dropped", "reward_trust_correlation", "seconds")}
    return {"recipe": recipe, "seed": seed, **kept, **compared(data.pairs(recipe, seed), data.examples("train"), plain)}


def compared(pairs: Sequence[PreferencePair], examples: Sequence[Example], plain: Sequence[str]) -> dict[str, Any]:
    """Phrase figures of four answers to the questions of the pairs, and how often one is better than another by phrase F1.

    The four: chosen, rejected, the row's own answer (`hint`), and the base's greedy one (`plain`). All are scored by the captions.
    """
    by_id = {example.id: (example, said) for example, said in zip(examples, plain, strict=True)}
    rows = [by_id[pair.example_id][0] for pair in pairs]
    sides = {
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
        "hint": [pair.answer for pair in pairs],
        "plain": [by_id[pair.example_id][1] for pair in pairs],
    }
    of = {name: scores(texts, rows) for name, texts in sides.items()}
    found: dict[str, Any] = {}
    for name, texts in sides.items():
        table = figures(texts, rows)
        found[name] = {figure: table[figure] for figure in FIGURES if figure in table} | {"styles": styles(texts)}
    for one, other in (("chosen", "rejected"), ("chosen", "plain"), ("chosen", "hint"), ("plain", "rejected")):
        found[f"{one} to {other}"] = verdicts(of[one], of[other])
    found["chosen equals hint"] = share([a == b for a, b in zip(sides["chosen"], sides["hint"], strict=True)])
    return found


def marked(data: Data, runs: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """For each (arm, seed) of objective rrpo, what share of the text of its pairs is marked, and how many an edit changed."""
    found = []
    for name, seed in runs:
        arm = data.task.arms[name]
        if arm.objective == "rrpo":
            made = data.pairs(arm.recipe, seed)
            pairs = arm.edit(data, made) if arm.edit else made
            changed = sum(one != other for one, other in zip(made, pairs, strict=True))
            found.append({"arm": name, "seed": seed, "changed": changed, "pairs": len(pairs), **shares_marked(pairs)})
    return found


def shares_marked(pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """The share of the characters of all chosen, and of all rejected, responses that are marked."""
    marks = {"chosen": [pair.chosen_marks for pair in pairs], "rejected": [pair.rejected_marks for pair in pairs]}
    texts = {"chosen": [pair.chosen for pair in pairs], "rejected": [pair.rejected for pair in pairs]}
    return {
        side: round(sum(end - start for each in marks[side] for start, end in each) / sum(map(len, texts[side])), 4)
        for side in marks
    }


def verdicts(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The shares in which the first is better, as good, and worse."""
    both = list(zip(ours, theirs, strict=True))
    return {
        "better": share([a > b for a, b in both]),
        "equal": share([a == b for a, b in both]),
        "worse": share([a < b for a, b in both]),
    }


def share(found: Sequence[bool]) -> float:
    return sum(found) / len(found) if found else 0.0
