"""Data recipes by the names that `recipe.name` takes: how a chunk of examples becomes scored responses."""

from pipelines.recipes import leanpo

RECIPES = {"leanpo": leanpo.respond}
