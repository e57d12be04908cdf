"""BMC's bridging: a wrong response, corrected in a few words, is chosen over itself; who corrects, and what is not taken."""

import dataclasses
import json

import pytest
from test_pairing import data_row
from test_recipe_units import CLIPS, EXAMPLES, JUDGE, kinds, respond

from vidalign import recipes
from vidalign.config.judging import JudgeConfig
from vidalign.config.loading import parse_config
from vidalign.config.rewriting import RrpoRecipe
from vidalign.errors import ConfigError
from vidalign.recipes.base import Evidence
from vidalign.recipes.bridging import bridge_rows, bridged_pair, num_changed, why_no_bridge, why_not_bridged
from vidalign.recipes.engine import SPECIAL_TOKEN
from vidalign.types import Example

CIRCLE = Example(id="a", video="a.mp4", question="Which way?", answer="left", options=("left", "right", "up"))
POLICY = RrpoRecipe(num_candidates=3, bridge="policy", trust="exact")


def test_a_bridge_is_right_and_nearer_to_the_response_than_the_truth_is():
    free = Example(id="f", video="v", question="What happens?", answer="A red circle moves left.")
    config = RrpoRecipe(trust="exact")
    wrong = "A red circle moves up."
    assert why_no_bridge(free, wrong, "A red circle moves left.", config) == ""
    assert why_no_bridge(free, wrong, "  ", config) == "no_bridge"
    assert why_no_bridge(free, wrong, wrong, config) == "no_bridge"
    assert why_no_bridge(free, wrong, "A red circle moves down.", config) == "bridge_not_right"
    chosen = "The answer is left."
    assert why_no_bridge(CIRCLE, "The answer is right.", chosen, RrpoRecipe()) == ""
    assert why_no_bridge(CIRCLE, "right", chosen, RrpoRecipe()) == "bridge_rewritten"
    unclear = Example(id="u", video="v", question="Describe it.", answer="A man walks his old dog along the river at dusk.")
    assert why_no_bridge(unclear, "He cooks.", "A person strolls with a pet.", RrpoRecipe()) == "bridge_not_right"
    assert num_changed("a b c", "a x c") == 2
    assert num_changed("a b c", "a b") == 1


def test_the_policy_corrects_until_a_correction_can_be_chosen():
    def answer(request):
        if "Correct the wrong answer" in request.prompt:
            return "It is a red circle that moves left." if "upwards" in request.prompt else "A red circle moves left."
        return ("A red circle moves up.", "It moves upwards, fast.", "A red circle moves left.")[request.seed % 3]

    config = RrpoRecipe(num_candidates=12, bridge="policy", trust="exact")
    engine, made = respond(config, answer, EXAMPLES[:1], CLIPS[:1])
    bridged = [r for r in made if r.kind == "bridged"]
    asked = [request for request in engine.requests if "Correct the wrong answer" in request.prompt]
    assert len(bridged) == len(asked) <= 2
    assert all(request.temperature == 0 for request in asked)
    assert "differences" not in {kind for _, kind, *_ in kinds(made)}
    pair = recipes.build(config).pair(data_row(EXAMPLES[0]), made, Evidence())
    assert (pair.chosen, pair.rejected) == ("A red circle moves left.", "A red circle moves up.")
    assert [pair.chosen[start:end] for start, end in pair.chosen_marks] == ["left"]
    assert json.loads(pair.provenance)["rule"] == "bridge=policy"
    assert json.loads(pair.provenance)["chosen"]["kind"] == "bridged"
    without = [r for r in made if r.kind != "bridged"]
    assert recipes.build(config).pair(data_row(EXAMPLES[0]), without, Evidence()) == "no_bridge"


def test_a_judge_corrects_after_the_rollout():
    config = RrpoRecipe(num_candidates=2, bridge="judge", trust="exact", judge=JUDGE)
    _, made = respond(config, lambda request: "A red circle moves up.", EXAMPLES[:1], CLIPS[:1])
    recipe = recipes.build(config)
    task = recipe.rewrite(EXAMPLES[:1], made, [])
    rows = [json.loads(row) for row in task.rows]
    said = []

    def chat(conversations):
        said.extend(each[0]["content"] for each in conversations)
        return ["A red circle moves left."] * len(conversations)

    written = task.work(rows, JudgeConfig(**JUDGE.model_dump()), chat, "me")
    assert [row["bridged"] for row in written] == ["A red circle moves left."]
    assert "Wrong answer: A red circle moves up." in said[0]
    pair = recipe.pair(data_row(EXAMPLES[0]), [*made, *recipe.rewritten(written)], Evidence())
    assert (pair.chosen, pair.rejected) == ("A red circle moves left.", "A red circle moves up.")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bridge": "policy", "rewrite": "policy"}, "set one of the two to none"),
        ({"bridge": "judge"}, "need recipe.judge"),
        ({"bridge": "policy", "wrong_by": "judge", "judge": JUDGE.model_dump()}, "too late for bridge=policy"),
        ({"bridge": "judge", "trust": "judge", "judge": JUDGE.model_dump()}, "bridge takes what is right by a rule"),
        ({"bridge": "policy", "bridge_prompt": "Correct {answer}"}, "must contain {previous}"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, says):
    base = {"run_dir": "x", "model": {"path": "m"}, "data": {"train": "t"}}
    with pytest.raises(ConfigError) as caught:
        parse_config({**base, "recipe": {"name": "rrpo", **options}})
    assert says in str(caught.value)


def test_the_dry_run_measures_its_prompt():
    asked = recipes.build(POLICY).asked([data_row(EXAMPLES[0])])
    assert [each.kind for each in asked] == ["plain", "bridge"]
    assert "bridge by policy" in recipes.build(POLICY).describe()


def test_words_that_no_space_divides_are_counted_one_by_one():
    assert num_changed("红色的圆向左移动", "红色的圆向右移动") == 2
    assert num_changed("圆向左移动", "圆停在屏幕中间不动了") > 4
    truth = Example(id="z", video="v", question="往哪边？", answer="左", options=("左", "右"))
    assert why_no_bridge(truth, "右", "左", RrpoRecipe()) == ""
    assert why_no_bridge(truth, "右", "正确答案是左", RrpoRecipe()) == "bridge_rewritten"


@pytest.mark.parametrize("trust", [None, "f1"])
def test_what_overlaps_with_the_truth_is_not_right(trust):
    free = Example(id="f", video="v", question="What happens?", answer="A red circle moves left across the screen.")
    config = RrpoRecipe(trust=trust, max_trust=0.5)
    wrong = "A red circle stands on the screen."
    assert why_no_bridge(free, wrong, "A red circle jumps across the screen.", config) == "bridge_not_right"
    assert why_no_bridge(free, wrong, free.answer, config) == ""


def test_every_wrong_response_is_tried_in_turn_and_no_longer_than_it_takes():
    free = Example(id="f", video="v", question="What happens?", answer="A red circle moves left.")
    wrong = ["A red circle moves up.", "A red circle moves down.", "A red circle moves away."]
    rows = [
        {"example": free.to_row(), "wrong": [{"candidate": at, "text": text} for at, text in enumerate(wrong)]},
        {"example": CIRCLE.to_row(), "wrong": [{"candidate": 7, "text": "right"}]},
        {"example": free.to_row(), "wrong": [{"candidate": at, "text": text} for at, text in enumerate(wrong)]},
    ]
    turns = iter([["It flies.", "left", "A red circle moves left."], ["No."], ["A red circle moves left."]])
    config = RrpoRecipe(trust="exact")
    made = bridge_rows(rows, JUDGE, lambda _: next(turns), "me", bridge_prompt=config.bridge_prompt, recipe=config)
    assert [(row["example_id"], row["candidate"], row["bridged"]) for row in made] == [
        ("f", 0, "It flies."),
        ("a", 7, "left"),
        ("f", 0, "A red circle moves left."),
        ("f", 1, "No."),
        ("f", 2, "A red circle moves left."),
    ]
    never = bridge_rows(rows[:1], JUDGE, lambda _: ["No."], "me", bridge_prompt=config.bridge_prompt, recipe=config)
    assert [row["candidate"] for row in never] == [0, 1, 2]


def test_a_correction_that_was_cut_off_or_spells_a_token_is_not_chosen():
    _, made = respond(POLICY, lambda request: "right", [CIRCLE], CLIPS[:1])
    [wrong] = [r for r in made if r.kind == "perturbed"][:1]
    fine = dataclasses.replace(wrong, kind="bridged", text=" left ", finish_reason="stop")
    assert why_not_bridged(CIRCLE, wrong, fine, POLICY) == ""
    assert why_not_bridged(CIRCLE, wrong, dataclasses.replace(fine, finish_reason="length"), POLICY) == "cut_by_length"
    assert why_not_bridged(CIRCLE, wrong, dataclasses.replace(fine, finish_reason=SPECIAL_TOKEN), POLICY) == "special_token"
    assert why_not_bridged(CIRCLE, wrong, None, POLICY) == "no_bridge"
    assert why_not_bridged(CIRCLE, wrong, dataclasses.replace(fine, text=" right\n"), POLICY) == "no_bridge"
    pair = bridged_pair(CIRCLE, [wrong], [fine], POLICY)
    assert (pair.chosen, pair.rejected, pair.chosen_trust) == ("left", "right", 1.0)
