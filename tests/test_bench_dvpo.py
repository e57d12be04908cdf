"""What bench.dvpo says of a value model's tokens, and its part of the page."""

import copy
import json
import pathlib

import pytest

from bench.dvpo import Told, answer_pairs, auc, first_difference, key, told
from bench.dvpo_page import page
from bench.quality.tables import cell

FOUND = {
    "value": {
        "recipe": "given", "learning_rate": 3e-3, "num_epochs": 6, "lora_rank": 8, "num_pairs": 300, "num_heldout": 100,
        "accuracy": 0.86, "interval": [0.78, 0.91], "compared": 90, "falls": 80,
        "falls_more": 85, "largest_fall": 60, "mean_rejected": -0.4, "mean_chosen": 0.2, "pairs": [],
    },
    "own": {"right": 70, "wrong": 50, "auc": 0.483},
    "policies": [
        {
            "objective": "dvpo", "seed": 0, "learning_rate": 1e-4, "num_epochs": 4, "rounds": 4,
            "tokens": {"value": 9000, "dvpo": 1200}, "prompts": {"dvpo": 180},
            "num_questions": 600, "base": 0.67, "aligned": 0.7, "interval": [0.66, 0.74], "by_round": None,
        }
    ],
}  # fmt: skip


def test_the_first_token_that_differs_is_the_one_whose_value_is_looked_at():
    assert first_difference([5, 6, 7, 2], [5, 6, 8, 9, 2]) == 2
    assert first_difference([5, 6], [5, 6, 8]) == 2
    made = told([0.0, 0.1, 0.2, 0.6], [0.0, 0.1, 0.2, -0.5, -0.4], 2)
    assert made == Told(chosen=pytest.approx(0.4), rejected=pytest.approx(-0.7), is_largest_fall=True)
    assert not told([0.0, 0.1, 0.2], [0.5, -0.5, -0.6], 1).is_largest_fall
    assert told([0.0, 0.1], [0.0, 0.1, 0.3], 1) is None, "after the last token there is no value"


def test_pairs_of_answers_differ_in_nothing_but_what_the_video_shows():
    asked = [("Which way?", "left"), ("Which way?", "right"), ("Which way?", "left"), ("What colour?", "red")]
    asked += [("How many?", number) for number in ("one", "two", "three")]
    rows = [{"id": str(n), "question": question, "answer": answer} for n, (question, answer) in enumerate(asked)]
    made = answer_pairs([*rows, {"id": "d", "question": "Describe.", "answer": "A long story.", "category": "description"}])
    assert [row["id"] for row in made] == ["0-0", "1-0", "2-0", "4-0", "4-1", "5-0", "5-1", "6-0", "6-1"], (
        "nobody else answers 3"
    )
    for row in made:
        assert row["chosen"] == row["answer"] != row["rejected"]


def test_a_value_that_tells_nothing_is_at_one_half():
    assert auc([1.0, 0.0], [0.5, 0.0]) == (1 + 1 + 0 + 0.5) / 4
    assert auc([1.0], []) is None


def test_the_page_says_whether_the_goal_is_met_and_what_was_sampled():
    said = page(FOUND)
    assert "ranks **86.0%** as the data does (78% to 91% at 95 %). The goal of 85% was met." in said
    assert "300 pairs of recipe given (an adapter of rank 8, rate 0.003, 6 epochs)" in said
    assert "70 right and 50 wrong, a right one ends with the higher value in **48.3%**" in said
    assert "falls in 80 of 90 rejected responses" in said
    row = "value: 9,000, dvpo: 1,200 | 86.0% | 70.0% (66.0% to 74.0%), 600 questions | 67.0% |"
    assert f"| `dvpo` | 0 | 0.0001, 4 | 180 | {row}" in said
    other = {**FOUND["policies"][0], "objective": "grpo", "tokens": {"grpo": 9600}, "prompts": {"grpo": 1440}}
    beside = page(FOUND | {"policies": [*FOUND["policies"], other]})
    assert "| `grpo` | 0 | 0.0001, 4 | 1,440 | grpo: 9,600 |  | 70.0%" in beside
    goal = "is within the interval of GRPO of seed 0 (66.0% to 74.0%; 9,600 tokens): reached in accuracy, with 1/8.0 of the tokens."
    assert f"- DVPO, seed 0: 70.0% {goal}" in beside
    better = {**other, "interval": [0.71, 0.8]}
    assert "is below the interval of GRPO of seed 0 (71.0% to 80.0%; 9,600 tokens): missed." in page(
        FOUND | {"policies": [*FOUND["policies"], better]}
    )
    assert key(FOUND["policies"][0]) != key(other)
    worse = copy.deepcopy(FOUND)
    worse["value"]["accuracy"] = 0.849
    assert "was missed." in page(worse)
    assert "No policy that was trained by it has been evaluated yet." in page(worse | {"policies": []})


def test_what_the_findings_say_of_a_second_seed_and_of_grpo_is_what_was_measured():
    root = pathlib.Path(__file__).parents[1]
    said = " ".join((root / "docs/findings.md").read_text(encoding="utf-8").split())
    dvpo, once, again = (
        json.loads((root / f"bench/results/{name}.json").read_text()) for name in ("dvpo", "dvpo_one_loser", "dvpo_seed_1")
    )
    runs = [each for each in dvpo["policies"] if each["objective"] == "dvpo"]
    earlier = [each for each in once["policies"] if each["objective"] == "dvpo"]
    few, *groups = sorted(
        (each for each in dvpo["policies"] if each["objective"] == "grpo"),
        key=lambda each: (each["tokens"]["grpo"] > 5000, each["seed"]),
    )
    most = groups[0]
    low, high = most["interval"]
    gains = [100 * (ours["aligned"] - theirs["aligned"]) for ours, theirs in zip(runs, groups, strict=True)]
    assert [each["seed"] for each in groups] == [0, 1, 2]
    assert [each["seed"] for each in runs] == [0, 1, 2]
    assert (earlier[1]["seed"], earlier[1]["ranked"]) == (1, again["value"]["accuracy"])
    told = {
        subject: [
            [a["chosen"][-1][1] > a["rejected"][-1][1] for a in found["value"]["pairs"] if a["question"].startswith(subject)]
            for found in (again, once, dvpo)
        ]
        for subject in ("What shape", "Is there")
    }
    counted = {subject: [f"{sum(each)} of {len(each)}" for each in found] for subject, found in told.items()}
    for sentence in (
        f"({dvpo['value']['num_pairs']} pairs) ranks {dvpo['value']['accuracy']:.1%} of",
        f"with other seeds it ranks {runs[1]['ranked']:.1%} and {runs[2]['ranked']:.1%} of".replace("%", "", 1),
        f"({once['value']['num_pairs']} pairs and half as many epochs again), it ranked {once['value']['accuracy']:.1%}",
        f"{again['value']['accuracy']:.1%} of {again['value']['num_heldout']} held-out pairs, below the goal",
        f"ranked {counted['What shape'][0]} pairs on them, which is chance, where the first ranked {counted['What shape'][1]} and",
        f"the one with every other answer ranks {counted['What shape'][2]}",
        f"On presence none does well ({counted['Is there'][2]} now)",
        f"with seeds 1 and 2 to {runs[1]['aligned']:.1%} and {runs[2]['aligned']:.1%}".replace("%", "", 1),
        f"GRPO ends at {most['aligned']:.1%} ({100 * low:.1f} to {100 * high:.1f}) with {most['tokens']['grpo']:,} sampled tokens",
        f"and with seeds 1 and 2 at {groups[1]['aligned']:.1%} and {groups[2]['aligned']:.1%}".replace("%", "", 1),
        f"({few['tokens']['grpo']:,}: eight prompts a round; one seed) GRPO ends at {few['aligned']:.1%}",
        f"DVPO ended at {earlier[0]['aligned']:.1%} and {earlier[1]['aligned']:.1%}, the latter below".replace("%", "", 1),
    ):
        assert sentence.replace("%", " %") in said
    assert f"DVPO minus GRPO is {cell(gains)} points, paired by seed." in said
    assert earlier[1]["aligned"] < low <= min(each["aligned"] for each in runs)
    assert dvpo["value"]["num_epochs"] * 1.5 == once["value"]["num_epochs"]
