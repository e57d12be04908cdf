"""Which rounds train a value model and no policy, and which take one (`pipelines/stages/value.py`)."""

from __future__ import annotations

from typing import Literal

from pipelines.stages.base import MANIFEST
from vidalign.config.rounds import at
from vidalign.config.run import RunConfig
from vidalign.errors import ConfigError
from vidalign.files import RunFolder
from vidalign.learning import objectives


def trains(config: RunConfig, index: int) -> Literal["train", "value"]:
    """The stage that trains in a round: of a policy, or of a value model."""
    return "value" if objectives.named(at(config, index).objective.name).learns == "value" else "train"


def value_round(config: RunConfig, index: int) -> int | None:
    """The round whose value model a round's objective takes: the newest before it; None of an objective that takes none."""
    name = at(config, index).objective.name
    if not objectives.named(name).needs_values:
        return None
    found = [before for before in range(index) if trains(config, before) == "value"]
    if not found:
        raise ConfigError(
            f"objective.name={name} takes a value model, and none is trained before round {index}; write rounds as a list of "
            "steps, such as [{recipe: {name: leanpo}, objective: {name: value}}, {repeat: 3, recipe: {name: group, num_candidates: 1, "
            f"rewards: {{}}}}, objective: {{name: {name}}}}}]"
        )
    return found[-1]


def check_values(config: RunConfig) -> None:
    """Raises `ConfigError` where a round takes a value model that no round before it trains, or one is trained that no round takes."""
    taken = {value_round(config, index) for index in range(config.rounds)}
    for index in range(config.rounds):
        if trains(config, index) == "value" and index not in taken:
            raise ConfigError(
                f"round {index} trains a value model, which changes no policy, and no later round takes it; add a step with objective "
                "dvpo, such as {recipe: {name: group, num_candidates: 1, rewards: {}}, objective: {name: dvpo}}, or choose another "
                "objective"
            )


def is_trained(run: RunFolder, index: int) -> bool:
    """Whether a round has trained its policy, or its value model."""
    return any((run.stage(name, index) / MANIFEST).is_file() for name in ("train", "value"))
