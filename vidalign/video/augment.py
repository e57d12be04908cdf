"""The degraded video on which a policy makes the mistakes that become rejected responses (LeanPO, arXiv 2506.05260).

Every parameter is drawn once per video and applied to all its frames, so that motion stays intact: a crop that jumped from
frame to frame would be a different kind of flaw.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torchvision.transforms.v2 import functional

from vidalign.config.degrading import AugmentConfig
from vidalign.video.clip import Clip

ASPECT_RATIOS = (3 / 4, 4 / 3)  # of the crop, relative to the frame's own; the usual range of a random resized crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What was drawn for one video. None means not applied."""

    crop: tuple[int, int, int, int]  # top, left, height, width in pixels; resized back to the frame's size
    jitter: tuple[tuple[str, float], ...] | None  # (adjustment, factor) in the order of application
    grayscale: bool
    blur_sigma: float | None  # pixels
    flip: bool
    frames: tuple[int, ...]  # positions kept, ascending


def augment(clip: Clip, config: AugmentConfig, rng: np.random.Generator) -> Clip:
    """Crop and resize back, jitter colours, turn grey, blur, flip, and keep only a few frames: same H and W, smaller F.

    `indices` are those of the kept frames; fps, duration_s and total_num_frames are the source's and do not change. Equal
    generator states give equal clips. A clip with fewer than `config.num_frames` frames keeps them all.
    """
    return apply(clip, draw(clip.frames.shape, config, rng))


def draw(shape: tuple[int, ...], config: AugmentConfig, rng: np.random.Generator) -> Augmentation:
    """Draw the parameters for frames of shape [F, H, W, 3]. Every call takes the same number of draws from `rng`."""
    num_frames, height, width = shape[:3]
    crop = _draw_crop(height, width, config.crop_scale, rng)
    jitter = _draw_jitter(config, rng)
    chance = rng.random(4)
    sigma = float(rng.uniform(*config.blur_sigma))
    count = min(config.num_frames, num_frames)
    return Augmentation(
        crop=crop,
        jitter=jitter if chance[0] < config.jitter_probability else None,
        grayscale=bool(chance[1] < config.grayscale_probability),
        blur_sigma=sigma if chance[2] < config.blur_probability else None,
        flip=bool(chance[3] < config.flip_probability),
        frames=tuple((2 * i + 1) * num_frames // (2 * count) for i in range(count)),
    )


def _draw_crop(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box with `scale` of the frame's area. The aspect ratio is bounded so that the box always fits: no retries."""
    area = float(rng.uniform(*scale))
    low, high = max(ASPECT_RATIOS[0], area), min(ASPECT_RATIOS[1], 1 / area)
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    crop_height = min(height, max(1, round(height * math.sqrt(area / ratio))))
    crop_width = min(width, max(1, round(width * math.sqrt(area * ratio))))
    top, left = rng.random(2)
    return int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1)), crop_height, crop_width


def _draw_jitter(config: AugmentConfig, rng: np.random.Generator) -> tuple[tuple[str, float], ...]:
    factors = {
        "brightness": rng.uniform(max(0.0, 1 - config.brightness), 1 + config.brightness),
        "contrast": rng.uniform(max(0.0, 1 - config.contrast), 1 + config.contrast),
        "saturation": rng.uniform(max(0.0, 1 - config.saturation), 1 + config.saturation),
        "hue": rng.uniform(-config.hue, config.hue),
    }
    names = list(factors)
    return tuple((names[i], float(factors[names[i]])) for i in rng.permutation(len(names)))


def apply(clip: Clip, augmentation: Augmentation) -> Clip:
    """Apply what was drawn to all frames as one batch."""
    height, width = clip.frames.shape[1:3]
    kept = clip.frames[list(augmentation.frames)]
    pixels = torch.from_numpy(kept).permute(0, 3, 1, 2)  # [F, 3, H, W]
    top, left, crop_height, crop_width = augmentation.crop
    pixels = functional.resized_crop(pixels, top, left, crop_height, crop_width, [height, width], antialias=True)
    adjustments = {
        "brightness": functional.adjust_brightness,
        "contrast": functional.adjust_contrast,
        "saturation": functional.adjust_saturation,
        "hue": functional.adjust_hue,
    }
    for name, factor in augmentation.jitter or ():
        pixels = adjustments[name](pixels, factor)
    if augmentation.grayscale:
        pixels = functional.rgb_to_grayscale(pixels, num_output_channels=3)
    if augmentation.blur_sigma:
        pixels = _blur(pixels, augmentation.blur_sigma)
    if augmentation.flip:
        pixels = functional.horizontal_flip(pixels)
    return dataclasses.replace(
        clip,
        frames=np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy()),
        **clip.taken(augmentation.frames),
    )


def _blur(pixels: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur with a kernel of three sigmas on each side, or as wide as the reflected border of a small frame allows."""
    height, width = pixels.shape[-2:]
    reach = math.ceil(3 * sigma)
    kernel = [2 * min(reach, side - 1) + 1 for side in (width, height)]
    return functional.gaussian_blur(pixels, kernel, [sigma, sigma])
