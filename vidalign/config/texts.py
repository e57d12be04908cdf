"""Rules of the texts in a configuration."""

from __future__ import annotations

from vidalign.special_tokens import KNOWN_ONLY, MEDIA, why


def plain_text(template: str) -> str:
    """A prompt's template as it is. Raises `ValueError` for one that holds special tokens, or a tag for the video."""
    if found := KNOWN_ONLY.found(template) or MEDIA.findall(template):
        raise ValueError(
            f"{why(found)}; write the plain text: the model's chat template adds its own tokens, and puts the video before the text"
        )
    return template
