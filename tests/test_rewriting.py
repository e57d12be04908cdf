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


def row(*wrong, example="e"):
    texts = [{"candidate": number, "text": text} for number, text in enumerate(wrong)]
    return {"example_id": example, "question": "Q?", "answer": "A red circle.", "wrong": texts}


def test_only_what_was_listed_is_asked_to_be_swapped():
    asked = []

    def chat(conversations):
        asked.append([messages[0]["content"] for messages in conversations])
        if len(asked) == 1:
            return ["- red => blue", "I see no difference."]
        return ["A blue circle."]

    rows = rewrite_rows(
        [row("It is blue."), row("Odd.", example="f")],
        config(),
        chat,
        "me",
        differences_prompt="list {answer}|{previous}",
        rewrite_prompt="swap {answer}|{previous}",
    )
    assert asked == [["list A red circle.|It is blue.", "list A red circle.|Odd."], ["swap A red circle.|- red => blue"]]
    assert [(r["example_id"], r["rewritten"], r["judge"]) for r in rows] == [("e", "A blue circle.", "me"), ("f", "", "me")]


def test_the_next_wrong_reply_is_tried_where_a_rewrite_cannot_be_used():
    asked = []

    def chat(conversations):
        asked.append([messages[0]["content"] for messages in conversations])
        return [
            {
                "list none": "I see none.",
                "list blue": "red => blue",
                "list green": "red => green",
                "swap red => blue": "A blue cross.",
            }.get(text, "A green circle.")
            for text in asked[-1]
        ]

    templates = {"differences_prompt": "list {previous}", "rewrite_prompt": "swap {previous}"}
    rows = rewrite_rows([row("none", "blue", "green"), row("green", "blue", example="f")], config(), chat, "me", **templates)
    assert [(r["example_id"], r["candidate"], r["rewritten"]) for r in rows] == [
        ("e", 0, ""),
        ("f", 0, "A green circle."),
        ("e", 1, "A blue cross."),
        ("e", 2, "A green circle."),
    ]
    assert asked[2:] == [["list blue"], ["swap red => blue"], ["list green"], ["swap red => green"]]
    assert rewrite_rows([], config(), chat, "me", **templates) == []


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
    asked = recipes.build(recipe)
    assert [r.text for r in asked.wrong_ones(TRUTH, replies, verdicts)] == ["false words"]
    assert asked.wrong_ones(TRUTH, replies) == []
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
