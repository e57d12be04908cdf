"""How videos are degraded for the rejected side: LeanPO's augmentation and RRPO's perturbation."""

from __future__ import annotations

from typing import Literal

import pydantic

from vidalign.config.section import Section


class AugmentConfig(Section):
    """How the video of a rejected response is degraded (LeanPO, arXiv 2506.05260).

    The defaults are those of the authors' script, with three exceptions. It blurs every video (blur_probability 1), with a sigma for
    each frame; here half of the videos are blurred, all frames alike, because a policy learns the blur where every loser has it. It
    resizes the crop to a square; here the crop gets the frame's own size, so that both sides of a pair have as many vision tokens.
    """

    crop_scale: tuple[float, float] = (0.08, 0.3)
    """Share of the area that a crop keeps, from and to."""
    brightness: float = pydantic.Field(0.4, ge=0)
    """Most change of brightness."""
    contrast: float = pydantic.Field(0.4, ge=0)
    """Most change of contrast."""
    saturation: float = pydantic.Field(0.2, ge=0)
    """Most change of saturation."""
    hue: float = pydantic.Field(0.1, ge=0, le=0.5)
    """Most change of hue."""
    jitter_probability: float = pydantic.Field(0.8, ge=0, le=1)
    """How often colours are changed."""
    grayscale_probability: float = pydantic.Field(0.2, ge=0, le=1)
    """How often a video loses its colours."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Width of the blur in pixels, from and to."""
    blur_probability: float = pydantic.Field(0.5, ge=0, le=1)
    """How often a video is blurred."""
    flip_probability: float = pydantic.Field(0.5, ge=0, le=1)
    """How often a video is mirrored."""
    num_frames: int = pydantic.Field(2, ge=2)
    """Frames that are left of a video."""

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> AugmentConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is [low, high] with 0 < low <= high <= 1 (shares of the area), got {[low, high]}")
        low, high = self.blur_sigma
        if not 0 <= low <= high:
            raise ValueError(f"blur_sigma is [low, high] with 0 <= low <= high (pixels), got {[low, high]}")
        return self


class PerturbConfig(Section):
    """How a video is perturbed to make RRPO's policy answer wrongly (arXiv 2504.12083).

    One square masks the centre of every frame, and frames change places: all of them ("global"), or only within `num_segments`
    equal parts ("local").
    """

    mask_area: tuple[float, float] | None = (0.25, 0.5)
    """Share of the area that a square masks, from and to; null masks nothing."""
    shuffle: Literal["none", "local", "global"] = "local"
    """Which frames change places."""
    num_segments: int = pydantic.Field(4, ge=1)
    """Parts within which frames change places where shuffle is "local"."""

    @pydantic.model_validator(mode="after")
    def _does_something(self) -> PerturbConfig:
        if self.mask_area is not None:
            low, high = self.mask_area
            if not 0 < low <= high < 1:
                raise ValueError(
                    f"mask_area is [low, high] with 0 < low <= high < 1 (shares of the area), got {[low, high]}"
                )
        elif self.shuffle == "none":
            raise ValueError("mask_area=null and shuffle=none leave the video unchanged; set at least one of the two")
        return self
