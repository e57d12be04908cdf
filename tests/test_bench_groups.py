"""The comparison of objectives on groups: its configurations, what it counts of a round, and what its page says."""

import json
import math

import pytest
from conftest import ROOT

from bench import groups
from vidalign.config.loading import parse_config
from vidalign.types import Response, ResponseGroup


@pytest.mark.parametrize("method", groups.METHODS)
def test_each_method_is_its_file_on_the_questions_of_the_bench(method, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parse_config(groups.config_of(method, tmp_path, 24, 3))
    assert (config.data.limit, config.seed, config.rounds, config.data.eval) == (24, 3, 3, None)
    assert config.objective.name == {"DAPO": "dapo", "Dr.GRPO": "dr_grpo", "GSPO": "gspo"}.get(method, "grpo")
    assert config.recipe.name == "group"
    assert ("temporal" in config.recipe.rewards) == (method == "T-GRPO")
    assert config.recipe.refill == (method == "DAPO")
    assert (config.train.learning_rate, config.train.batch_size) == (1e-4, 16)


def group(rewards, accuracy, **parts):
    return ResponseGroup(
        id="g", example_id="a", video="a.mp4", question="?", answer="!", category="", texts=("t",) * len(rewards),
        rewards=tuple(rewards), left_out=("",) * len(rewards), policy_version="p", tokens="",
        parts=json.dumps({"accuracy": accuracy, **parts}),
    )  # fmt: skip


def reply(kind, trust):
    return Response(
        example_id="a", kind=kind, candidate=0, turn=0, text="t", token_ids=(1,), log_probs=(-1.0,), seed=0, temperature=1.0,
        top_p=1.0, finish_reason="stop", policy_version="p", trust=trust,
    )  # fmt: skip


def test_advantages_agree_with_those_by_accuracy_alone_as_far_as_the_other_rewards_let_them():
    same = group([0.5, 1.0, 0.0], [0.5, 1.0, 0.0])
    assert groups.agreement([same]) == 1.0
    assert groups.agreement([group([1.0, 0.5, 0.0], [0.0, 0.5, 1.0])]) == -1.0
    assert groups.agreement([group([0.5, 0.5], [0.5, 0.5])]) is None
    assert groups.agreement([]) is None


def test_a_temporal_reward_is_given_withheld_or_cannot_be_had():
    made = [
        group([1.3, 0.2], [1.0, 0.2], temporal=[1.0, 0.0]),
        group([1.0, 0.2], [1.0, 0.2], temporal=[0.0, 0.0]),
        group([0.1, 0.2], [0.1, 0.2], temporal=[0.0, 0.0]),
    ]
    replies = [reply("plain", 1.0), reply("plain", 0.5), reply("shuffled", 0.25), reply("shuffled", math.nan)]
    assert groups.temporal(made, replies) == {
        "groups": 3, "given": 1, "withheld": 1, "none_right": 1, "ordered": 0.75, "shuffled": 0.25,
    }  # fmt: skip
    assert groups.temporal(made, replies[:2]) is None


def run(f1, **more):
    figures = dict.fromkeys(groups.FIGURES, 0.3) | {"f1": f1, "words": 26.0}
    each = {
        "seconds": {"responses": 10.0, "train": 20.0},
        "kept": 48,
        "groups": {"all_alike": 1, "mean_parts": {"overlong": -0.01}},
        "tokens": {"plain": 1000},
        "alike_by_right": 12,
        "styles": {"moves": 0.5, "goes": 0.25, "heading": 0.25},
        "agreement_with_accuracy": 0.8,
        "temporal": None,
    }
    return {"rounds": [each | more] * 3, "figures": figures}


def test_the_page_says_means_over_seeds_and_what_the_rewards_did():
    of_time = {"groups": 48, "given": 40, "withheld": 5, "none_right": 3, "ordered": 0.6, "shuffled": 0.4}
    found = {
        "questions": 48,
        "num_questions": 480,
        "base": dict.fromkeys(groups.FIGURES, 0.49) | {"words": 25.0},
        "runs": {
            "GRPO": {"0": run(0.5), "1": run(0.6)},
            "DAPO": {"0": run(0.52), "1": run(0.62)},
            "T-GRPO": {"0": run(0.55, temporal=of_time)},
        },
        "versions": "torch 2.",
    }
    said = groups.page(found)
    assert "| base | | 49.0 | 49.0 | 49.0 | 25.0 | | | |" in said
    assert "| GRPO | 2 | 55.0 ± 63.5 | 30.0 ± 0.0 | 30.0 ± 0.0 | 26.0 | 6 of 288 | 3,000 | 90 |" in said
    assert "| T-GRPO | 1 | 55.0 | 30.0 | 30.0 | 26.0 | 3 of 144 | 3,000 | 90 |" in said
    assert "DAPO minus GRPO: +2.0 ± 0.0 points of F1 on the same seeds." in said
    assert "T-GRPO minus GRPO: one seed (+5.0)." in said
    assert "of which its rounds hold 6 among 288" in said
    assert "is given to 120 of 144 groups, 9 have no right reply, and it is withheld from 15" in said
    assert "wrong below, 25 %, 25 %, 25 % of the groups" in said
    assert "by round: GRPO 25 %, 25 %, 25 %; DAPO 25 %, 25 %, 25 %; T-GRPO" in said


def test_replies_that_are_all_right_or_all_wrong_would_be_alike():
    made = [group([0.5, 1.0], [0.5, 1.0]), group([0.4, 0.1], [0.4, 0.1]), group([0.4, 0.6], [0.4, 0.6])]
    assert [groups.alike_by_right(each) for each in made] == [True, True, False]
