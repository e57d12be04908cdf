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
    ],
)
def test_values_that_no_run_can_use(more, says):
    with pytest.raises(ConfigError, match=says):
        load(of(**more))
