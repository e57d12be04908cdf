"""Does a text of the data or of the configuration hold a special token of the model? The known ones are refused where it is read."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.inputs import Inputs
from vidalign.config.recipe import RecipeSection
from vidalign.data.rows import special_token_errors
from vidalign.errors import ConfigError
from vidalign.special_tokens import FIX, SpecialTokens, why


def check_texts(inputs: Inputs, recipes: Sequence[RecipeSection], special: SpecialTokens) -> None:
    """Raises `RowError` for the first row with a special token in a text, and `ConfigError` for a prompt's template with one."""
    for name, value in (option for recipe in recipes for option in recipe):
        if isinstance(value, str) and name.endswith("_prompt") and (found := special.found(value)):
            raise ConfigError(f"recipe.{name} {why(found)}; {FIX}")
    for row in [*inputs.train, *inputs.held_out]:
        for error in special_token_errors(row.row, special):
            raise error.at(row.where)
