"""docs/methods.md names the parameters of each objective and their defaults as the code has them."""

import dataclasses
import re

import pytest
from conftest import ROOT

from vidalign.learning import objectives
from vidalign.learning.objectives.groups import GroupObjective

PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
ON_PAIRS = [name for name, kind in objectives.OBJECTIVES.items() if not issubclass(kind, GroupObjective)]
OF_ALL = {"weigh_stale"}


def defaults(name):
    return {field.name: field.default for field in dataclasses.fields(objectives.OBJECTIVES[name]) if field.init}


def row(name, heading):
    """The cells of the objective's row in the first table after a heading that has one."""
    lines = PAGE[PAGE.index(heading) :].splitlines()
    found = next(line for line in lines if line.startswith(f"| `{name}` |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


@pytest.mark.parametrize("name", ON_PAIRS)
def test_the_defaults_of_objectives_on_pairs(name):
    told = row(name, "\n## Objectives\n")[-1]
    said = {
        word: value.strip(chr(34))
        for word, value in re.findall(r"([a-z_]+) ([0-9][0-9.e-]*|\"[a-z]+\")", told.split(";")[0])
    }
    known = {
        key: value for key, value in defaults(name).items() if key not in OF_ALL and not (key == "sft_weight" and value == 0)
    }
    assert set(said) == set(known)
    for key, value in said.items():
        assert float(value) == known[key] if isinstance(known[key], float) else value == known[key]


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_the_defaults_of_objectives_on_groups(name):
    cells = row(name, "\n### Group objectives\n")
    known = defaults(name)
    assert cells[1].split(":")[0] == known["normalise"]
    assert cells[2].split(":")[0] == known["ratio"]
    assert [float(value) for value in cells[3].split(",")] == [known["eps_low"], known["eps_high"]]
    assert float(cells[4]) == known["beta"]
    assert [cells[5], cells[6]] == [str(known["scale"]).lower(), str(known["drop_uniform"]).lower()]
