"""The objectives, by the names that `objective.name` takes; others are named as `package.module:attribute`.

`base.py` says what an objective is and how trainers call it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from vidalign import plugins
from vidalign.errors import ConfigError
from vidalign.learning.objectives.alpha_dpo import AlphaDPO
from vidalign.learning.objectives.base import AnyObjective, Loss, Objective
from vidalign.learning.objectives.bmc import BMC
from vidalign.learning.objectives.dpo import CDPO, DPO, IPO, RDPO, RPO
from vidalign.learning.objectives.expo import EXPO
from vidalign.learning.objectives.groups import DAPO, DVPO, GRPO, GSPO, DrGRPO
from vidalign.learning.objectives.leanpo import LeanPO, SimPO
from vidalign.learning.objectives.mpo import MPO
from vidalign.learning.objectives.orpo import ORPO
from vidalign.learning.objectives.rrpo import RRPO
from vidalign.learning.objectives.sft import SFT
from vidalign.learning.objectives.sppo import SPPO
from vidalign.learning.objectives.value import Value

__all__ = ["OBJECTIVES", "Loss", "Objective", "build"]

OBJECTIVES: dict[str, type[AnyObjective]] = {
    "leanpo": LeanPO,
    "simpo": SimPO,
    "rrpo": RRPO,
    "dpo": DPO,
    "cdpo": CDPO,
    "rdpo": RDPO,
    "ipo": IPO,
    "rpo": RPO,
    "mpo": MPO,
    "alpha_dpo": AlphaDPO,
    "orpo": ORPO,
    "sppo": SPPO,
    "bmc": BMC,
    "expo": EXPO,
    "sft": SFT,
    "grpo": GRPO,
    "dapo": DAPO,
    "dr_grpo": DrGRPO,
    "gspo": GSPO,
    "value": Value,
    "dvpo": DVPO,
}


def build(name: str, params: Mapping[str, Any]) -> AnyObjective:
    """The objective called `name`, with `params` in place of its defaults.

    Raises:
        ConfigError: an unknown name or parameter (the message suggests the nearest known one), a value of the wrong type or out
            of range, or a `package.module:attribute` that is not a subclass of `Objective` or `GroupObjective`.
    """
    objective = named(name)
    known = [field.name for field in dataclasses.fields(objective)]
    for key in params:
        if key not in known:
            raise ConfigError(f"unknown objective.params.{key} of {name}; {_nearest(key, known)}")
    return objective(**params)


def named(name: str) -> type[AnyObjective]:
    """The class of the objective called `name`. Raises as `build`."""
    objective = plugins.resolve(name, OBJECTIVES, what="objective.name")
    if not (isinstance(objective, type) and issubclass(objective, AnyObjective)):
        raise ConfigError(f"objective.name={name} is {objective!r}; name a subclass of {Objective.__module__}.Objective")
    return objective


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
