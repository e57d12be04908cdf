"""Rounds as a list of steps: what each round's configuration is, and what is refused."""

import pytest

from pipelines import check
from vidalign.config.loading import dump_config, load_config, parse_config
from vidalign.config.rounds import at, variants
from vidalign.errors import ConfigError

GROUPS = {"recipe": {"name": "group", "num_candidates": 6}, "objective": {"name": "grpo"}, "repeat": 2}
PAIRS = {"objective": {"name": "dpo", "params": {"beta": 0.2}}, "train": {"learning_rate": 3e-6}}


def of(rounds, **sections):
    raw = {"run_dir": "r", "model": {"path": "examples/shapes/model"}, "data": {"train": "t.jsonl"}, **sections}
    return parse_config(raw | {"rounds": rounds})


def test_each_round_has_the_options_of_its_step():
    config = of(
        [GROUPS, PAIRS, {"recipe": {"num_candidates": 9}}], recipe={"name": "leanpo", "plain_prompt": "Q: {question}"}
    )
    assert config.rounds == 4
    rounds = [at(config, index) for index in range(4)]
    assert [each.recipe.name for each in rounds] == ["group", "group", "leanpo", "leanpo"]
    assert [each.objective.name for each in rounds] == ["grpo", "grpo", "dpo", "leanpo"]
    assert [each.recipe.num_candidates for each in rounds] == [6, 6, 4, 9]
    assert {each.recipe.plain_prompt for each in rounds} == {"Q: {question}"}  # another recipe asks as the run does
    assert rounds[2].objective.params == {"beta": 0.2}
    assert rounds[2].train.learning_rate == 3e-6
    assert rounds[2].train == rounds[3].train.model_copy(update={"learning_rate": 3e-6})
    assert [each.recipe.name for each in variants(config)] == ["group", "leanpo", "leanpo"]
    assert at(config, 7) == rounds[3]  # of a folder with more rounds


def test_a_number_of_rounds_is_the_same_configuration_for_all():
    config = of(3)
    assert variants(config) == [config] == [at(config, 2)]


def test_a_run_is_read_back_as_it_was_written(tmp_path):
    config = of([GROUPS, PAIRS])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert load_config(path, ["rounds=[{}, {}]", "steps=[]"]).rounds == 2


@pytest.mark.parametrize(
    ("rounds", "says"),
    [
        ([], "a list without a step"),
        ([{"repeat": 0}], "repeat"),
        ([{"objectiv": {"name": "dpo"}}], r"unknown key rounds\[0\].objectiv; did you mean rounds\[0\].objective"),
        ([{"train": {"num_workers": 2}}], "one train.num_workers"),
        ([{"recipe": {"plain_prompt": "{question}?"}}], "one recipe.plain_prompt"),
        ([{}, {"train": {"lr": 1}}], "learning_rate"),
        ([{}, {"recipe": {"name": "none"}}], "none"),
        ("many", "rounds"),
    ],
)
def test_what_a_step_cannot_be(rounds, says):
    with pytest.raises(ConfigError, match=says):
        variants(of(rounds))


def test_another_number_of_rounds_than_the_steps_have():
    with pytest.raises(ConfigError, match="rounds=5, but the steps are 3 rounds"):
        of(5, steps=[GROUPS, PAIRS])


def test_every_step_is_checked_before_anything_starts():
    with pytest.raises(ConfigError, match="learns from groups"):
        check.before(of([{}, {"objective": {"name": "grpo"}}]), ["rollout", "train"])
