"""Recipes: how examples become responses and preference pairs. `base.py` is their interface; `RECIPES` lists them by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vidalign.config.recipe import RecipeSection
from vidalign.plugins import resolve
from vidalign.recipes.base import Recipe
from vidalign.recipes.given import Given
from vidalign.recipes.group import Group
from vidalign.recipes.hound import Hound
from vidalign.recipes.leanpo import Leanpo
from vidalign.recipes.reagent import Reagent
from vidalign.recipes.rrpo import Rrpo
from vidalign.recipes.verified import Verified

RECIPES: Mapping[str, type[Recipe[Any]]] = {
    "leanpo": Leanpo,
    "rrpo": Rrpo,
    "hound": Hound,
    "given": Given,
    "group": Group,
    "verified": Verified,
    "reagent": Reagent,
}


def build(config: RecipeSection) -> Recipe[Any]:
    """The recipe of a configuration's section. Raises `ConfigError` for an unknown name."""
    return resolve(config.name, RECIPES, what="recipe.name")(config)
