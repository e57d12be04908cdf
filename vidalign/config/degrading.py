"""How videos are degraded for the rejected side: LeanPO's augmentation and RRPO's perturbation."""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic

from vidalign.config.section import Section
from vidalign.config.used import check_used


class AugmentConfig(Section):
    """How the video of a rejected response is degraded (LeanPO, arXiv 2506.05260).

    The defaults are those of the authors' script, with three exceptions. It blurs every video (blur_probability 1), with a sigma for
    each frame; here half of the videos are blurred, all frames alike, because a policy learns the blur where every loser has it. It
    resizes the crop to a square; here the crop gets the frame's own size, so that both sides of a pair have as many vision tokens.
    """

    crop_scale: tuple[float, float] = (0.08, 0.3)
    """Share of the area that a crop keeps, from and to."""
    brightness: float = pydantic.Field(0.4, ge=0, allow_inf_nan=False)
    """Most change of brightness."""
    contrast: float = pydantic.Field(0.4, ge=0, allow_inf_nan=False)
    """Most change of contrast."""
    saturation: float = pydantic.Field(0.2, ge=0, allow_inf_nan=False)
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

    One square masks the centre of every frame, and frames change places: all of them ("global"), only within `num_segments`
    equal parts ("local"), or from last to first ("reverse"). `keep` takes frames away, as TPO (arXiv 2501.13919) and TEMPLE (arXiv
    2503.16929) do: what is left is some frames in order ("drop") or one part of the video ("segment").
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"keep", "kept_share"})

    mask_area: tuple[float, float] | None = (0.25, 0.5)
    """Share of the area that a square masks, from and to; null masks nothing."""
    shuffle: Literal["none", "local", "global", "reverse"] = "local"
    """Which frames change places; "reverse" shows them from last to first."""
    num_segments: int = pydantic.Field(4, ge=1)
    """Parts within which frames change places where shuffle is "local"."""
    keep: Literal["all", "drop", "segment"] = "all"
    """Which frames are left: all, some that are drawn ("drop"), or those of one part of the video that is drawn ("segment")."""
    kept_share: float = pydantic.Field(0.5, gt=0, lt=1)
    """Share of the frames that is left where keep is "drop" or "segment"; at least two frames are."""

    @pydantic.model_validator(mode="after")
    def _does_something(self) -> PerturbConfig:
        if self.mask_area is not None:
            low, high = self.mask_area
            if not 0 < low <= high < 1:
                raise ValueError(
                    f"mask_area is [low, high] with 0 < low <= high < 1 (shares of the area), got {[low, high]}"
                )
        elif self.shuffle == "none" and self.keep == "all":
            raise ValueError(
                "mask_area=null, shuffle=none and keep=all leave the video unchanged; set at least one of them to something else"
            )
        check_used(
            self,
            (self.keep != "all", ["kept_share"], 'keep "drop" and "segment"'),
            (self.shuffle == "local", ["num_segments"], 'shuffle "local"'),
        )
        return self


class ClipPairsConfig(Section):
    """Pairs over videos: one response that is preferred with the video to with another clip (VDPO, arXiv 2504.05810).

    The response is the chosen one of each pair. The other clip is the video, perturbed or augmented, or the one that its row names
    as `rejected_video`, such as a generated one. "alone" trains on these pairs in place of the others, "beside" on both kinds
    together (MixDPO, arXiv 2601.04778).
    """

    with_others: Literal["alone", "beside"] = "beside"
    """Train on pairs over videos alone, or beside the pairs of responses."""
    perturb: PerturbConfig | None = None
    """How the other clip is perturbed; set this, `augment` or `of_rows`."""
    augment: AugmentConfig | None = None
    """How the other clip is augmented; set this, `perturb` or `of_rows`."""
    of_rows: bool = False
    """Take the clips that rows name as `rejected_video`; set this, `perturb` or `augment`."""

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> ClipPairsConfig:
        if (self.perturb is not None) + (self.augment is not None) + self.of_rows != 1:
            raise ValueError(
                "clip_pairs needs exactly one of perturb, augment and of_rows, which say where the other clip is from; set one, such "
                "as "
                'perturb: {mask_area: null, shuffle: "reverse"}'
            )
        return self
