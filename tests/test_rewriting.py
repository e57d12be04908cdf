"""Parallel rewrites by a text model, and wrong replies by its verdict."""

import pytest
from test_judge import config
from test_pairing import TRUTH, pair, response

from vidalign import recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.recipes import RrpoRecipe
from vidalign.recipes.rewriting import rewrite_rows
from vidalign.types import Judgement

JUDGE = JudgeConfig(kind="openai", model="judge", base_url="http://127.0.0.1:1/v1")


def row(wrong, candidate=0):
    return {"example_id": "e", "candidate": candidate, "question": "Q?", "answer": "A red circle.", "wrong": wrong}


def test_only_what_was_listed_is_asked_to_be_swapped():
    asked = []

    def chat(conversations):
        asked.append([messages[0]["content"] for messages in conversations])
        if len(asked) == 1:
            return ["- red => blue", "I see no difference."]
        return ["A blue circle."]

    rows = rewrite_rows(
        [row("It is blue."), row("Odd.", candidate=1)],
        config(),
        chat,
        "me",
        differences_prompt="list {answer}|{previous}",
        rewrite_prompt="swap {answer}|{previous}",
    )
    assert asked == [["list A red circle.|It is blue.", "list A red circle.|Odd."], ["swap A red circle.|- red => blue"]]
    assert [(r["candidate"], r["rewritten"], r["judge"]) for r in rows] == [(0, "A blue circle.", "me"), (1, "", "me")]


def test_a_judge_decides_what_is_wrong_and_an_unjudged_reply_is_not_known_to_be():
    recipe = RrpoRecipe(wrong_by="judge", judge=JUDGE)
    replies = [
        response("perturbed", "fine words", candidate=0, reward=-0.1, trust=0.0),
        response("perturbed", "false words", candidate=1, reward=-0.5, trust=0.0),
        response("perturbed", "unread", candidate=2, reward=-0.2, trust=0.0),
    ]
    verdicts = {
        text: Judgement(example_id="e", response=text, score=score, explanation="", judge="j")
        for text, score in (("fine words", 5.0), ("false words", 1.0))
    }
    found = recipes.build(recipe).likeliest_wrong(TRUTH, replies, verdicts)
    assert found is not None
    assert found.text == "false words"
    assert recipes.build(recipe).likeliest_wrong(TRUTH, replies) is None
    assert pair(recipe, TRUTH, replies, verdicts).rejected == "false words"
    assert pair(recipe, TRUTH, replies[2:], verdicts) == "no_wrong_reply"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rewrite": "judge"}, "need recipe.judge"),
        ({"wrong_by": "judge"}, "need recipe.judge"),
        ({"judge": JUDGE}, "nothing uses it"),
        ({"wrong_by": "judge", "rewrite": "policy", "judge": JUDGE}, "too late for rewrite=policy"),
    ],
)
def test_settings_that_contradict_each_other_say_both_ways_out(fields, says):
    with pytest.raises(ValueError, match=says):
        RrpoRecipe(**fields)
