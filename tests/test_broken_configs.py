"""Every file of configs/ with one thing broken, and values that no run can use: refused at load by the name of the option."""

import copy
import pathlib

import pytest

from pipelines.checks.learning import check_clip_pairs, check_objective, check_prompts, check_recipe, check_reuse
from pipelines.checks.overlap import check_staleness
from pipelines.value_rounds import check_values
from vidalign.config.loading import parse_config
from vidalign.config.rounds import variants
from vidalign.config.yaml_file import read_mapping
from vidalign.errors import ConfigError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob("*.yaml"))


def load(raw):
    """What a dry run looks at before it reads data."""
    config = parse_config(raw)
    for step in variants(config):
        check_objective(step.objective, step.train)
        check_recipe(step)
        check_clip_pairs(step)
        check_prompts(step, 10**9)
    check_reuse(config)
    check_values(config)
    check_staleness(config)


def places(node, path=()):
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield (*path, name), value
        yield from places(value, (*path, name))


def broken(raw, path, name, value):
    made = copy.deepcopy(raw)
    node = made
    for step in path[:-1]:
        node = node[step]
    if name != path[-1]:
        del node[path[-1]]
    node[name] = value
    return made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_slip_anywhere_in_a_configuration_is_refused_by_its_name(path):
    raw = read_mapping(path)
    load(raw)
    for place, value in places(raw):
        name = place[-1]
        slips = [(name, {"no such option": 1})] if place != ("rounds",) else [(name, 0)]
        slips += [(f"{name}z", value)] if isinstance(name, str) else []
        slips += [(name, "three"), (name, float("nan"))] if type(value) in (int, float) else []
        slips += [(name, [value])] if isinstance(value, str) else []
        for said, wrong in slips:
            with pytest.raises(ConfigError) as caught:
                load(broken(raw, place, said, wrong))
            if isinstance(name, str):
                assert str(name) in str(caught.value) or f"{place[-2]}" in str(caught.value)
            assert "\n" not in str(caught.value)


def of(**more):
    return {"run_dir": "r", "model": {"path": "m"}, "data": {"train": "t"}, **more}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"rounds": 10**12}, "rounds=1000000000000: .*10000"),
        ({"rounds": [{"repeat": 10**12}]}, r"rounds\[0\].repeat=1000000000000: .*10000"),
        (
            {"recipe": {"name": "group", "rewards": {"accuracy": 0}}, "objective": {"name": "grpo"}},
            r"rewards=\{'accuracy': 0.0\} are all of weight 0, .*; give one a weight",
        ),
        (
            {"recipe": {"name": "group", "rewards": {"format": 1}, "format_pattern": ""}, "objective": {"name": "grpo"}},
            "format_pattern is empty, which only an empty reply matches; write one",
        ),
        (
            {"objective": {"name": "mpo", "params": {"preference_weight": 0, "quality_weight": 0, "sft_weight": 0}}},
            "preference_weight, quality_weight and sft_weight of mpo are all 0, so that nothing is learned",
        ),
        ({"objective": {"name": "orpo", "params": {"odds_weight": 0, "sft_weight": 0}}}, "of orpo are all 0"),
    ],
)
def test_values_that_no_run_can_use(more, says):
    with pytest.raises(ConfigError, match=says):
        load(of(**more))


JUDGE = {"kind": "openai", "model": "m", "base_url": "http://x/v1"}


@pytest.mark.parametrize(
    ("recipe", "option"),
    [
        ({"name": "leanpo", "hints": False, "hint_prompt": "{question} {answer}"}, "hint_prompt"),
        ({"name": "leanpo", "num_turns": 1, "reflect_prompt": "{question} {previous} {answer}"}, "reflect_prompt"),
        ({"name": "leanpo", "replay_buffer": 5}, "replay_buffer"),
        ({"name": "leanpo", "replay_max_tokens": 5}, "replay_max_tokens"),
        ({"name": "leanpo", "negatives": "replayed", "augment": {"hue": 0.2}}, "augment"),
        ({"name": "rrpo", "rewrite_tries": 5}, "rewrite_tries"),
        ({"name": "rrpo", "differences_prompt": "{question} {answer} {previous}"}, "differences_prompt"),
        ({"name": "rrpo", "rewrite_prompt": "{question} {answer} {previous} {differences}"}, "rewrite_prompt"),
        ({"name": "rrpo", "bridge_prompt": "{question} {answer} {previous}"}, "bridge_prompt"),
        ({"name": "rrpo", "threshold": 4}, "threshold"),
        ({"name": "hound", "judge": JUDGE, "caption_prompt": "Say what is there."}, "caption_prompt"),
    ],
)
def test_an_option_that_nothing_uses_is_refused(recipe, option):
    with pytest.raises(
        ConfigError, match=f"{option} is set but nothing uses it: it is for .*; set that, or leave {option} out"
    ):
        load(of(recipe=recipe))
