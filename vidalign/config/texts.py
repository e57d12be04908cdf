"""Rules of the texts in a configuration."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from vidalign.special_tokens import KNOWN_ONLY, MEDIA, why


def plain_text(template: str) -> str:
    """A prompt's template as it is. Raises `ValueError` for one that holds special tokens, or a tag for the video."""
    if found := KNOWN_ONLY.found(template) or MEDIA.findall(template):
        raise ValueError(
            f"{why(found)}; write the plain text: the model's chat template adds its own tokens, and puts the video before the text"
        )
    return template


def check_spelling(key: str, template: str, names: Collection[str]) -> None:
    """Raises `ValueError` for a placeholder that is nearly one of `names` ("{qestion}"), which would be sent as it stands."""
    for found in re.findall(r"{([A-Za-z_]{3,20})}", template):
        near = difflib.get_close_matches(found.lower(), names, n=1, cutoff=0.75)
        if found not in names and near:
            raise ValueError(f"{key} has {{{found}}}, which nothing fills in; did you mean {{{near[0]}}}?")
