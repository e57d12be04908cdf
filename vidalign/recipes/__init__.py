"""Data recipes by the names that `recipe.name` takes: how a chunk of examples becomes scored responses.

`given` asks no engine, so it is not here: its pairs are in the data.
"""

from collections.abc import Callable

from vidalign.recipes import hound, leanpo, rrpo
from vidalign.types import Response

RECIPES: dict[str, Callable[..., list[Response]]] = {"leanpo": leanpo.respond, "rrpo": rrpo.respond, "hound": hound.respond}
