"""The section of a step, see `vidalign.config.rounds`."""

from __future__ import annotations

from typing import Any

import pydantic

from vidalign.config.section import Section


class StepConfig(Section):
    """What some rounds of a run change, see `vidalign.config.rounds`."""

    repeat: int = pydantic.Field(1, ge=1)
    """Rounds of this step."""
    recipe: dict[str, Any] | None = None
    """Options of the recipe, or another recipe."""
    objective: dict[str, Any] | None = None
    """Options of the objective, or another objective."""
    train: dict[str, Any] | None = None
    """Options of training."""
