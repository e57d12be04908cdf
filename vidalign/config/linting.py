"""What counts as an artefact in pairs."""

from __future__ import annotations

import pydantic

from vidalign.config.section import Section


class LintConfig(Section):
    """What counts as an artefact in pairs (`vidalign/recipes/lint.py`), and which pairs are dropped for it.

    By default artefacts are only reported.
    """

    word_ratio: float = pydantic.Field(5.0, gt=1)
    """A word is a tell-tale if one side uses it so many times as often as the other."""
    min_count: int = pydantic.Field(8, ge=1)
    """Least uses of such a word."""
    max_longer_share: float = pydantic.Field(0.75, ge=0.5, le=1)
    """Pairs are biased by length if one side is longer in more than this share."""
    drop_tell_tales: bool = False
    """Drop pairs with tell-tale words."""
    max_length_ratio: float | None = pydantic.Field(None, ge=1)
    """Drop pairs whose lengths differ by more than this factor."""
    max_duplicates: int | None = pydantic.Field(None, ge=1)
    """Keep at most so many pairs with the same two responses."""
