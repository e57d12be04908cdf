"""The section of a step, see `vidalign.config.rounds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic

from vidalign.config.section import Section

MAX_ROUNDS = 10_000  # every round is looked at before a run begins


class StepConfig(Section):
    """What some rounds of a run change, see `vidalign.config.rounds`."""

    repeat: int = pydantic.Field(1, ge=1, le=MAX_ROUNDS)
    """Rounds of this step."""
    recipe: dict[str, Any] | None = None
    """Options of the recipe, or another recipe."""
    objective: dict[str, Any] | None = None
    """Options of the objective, or another objective."""
    train: dict[str, Any] | None = None
    """Options of training."""


def with_steps(values: Any) -> Any:
    """A configuration's values; a list in the place of `rounds` becomes its steps, and the number of rounds follows."""
    if not isinstance(values, dict) or not isinstance(steps := values.get("rounds"), list):
        return values
    if values.get("steps"):
        raise ValueError("rounds and steps are two lists of steps; leave steps out")
    if not steps:
        raise ValueError("rounds is a list without a step; name at least one, or a number of rounds")
    repeats = [step.get("repeat", 1) if isinstance(step, dict) else 1 for step in steps]
    return {**values, "steps": steps, "rounds": sum(count for count in repeats if isinstance(count, int))}


def check_count(rounds: int, steps: Sequence[StepConfig]) -> None:
    """Raises `ValueError` where there is another number of rounds than the steps have."""
    if steps and rounds != (count := sum(step.repeat for step in steps)):
        raise ValueError(f"rounds={rounds}, but the steps are {count} rounds; change their repeat instead of rounds")
