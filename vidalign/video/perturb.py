"""The perturbed video on which a policy makes the mistakes that RRPO corrects (arXiv 2504.12083).

The centre is masked and the frames are out of order: part of what the video shows and when it happens is lost, but no pixel
outside the square changes. Or frames are taken away (TPO, TEMPLE).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vidalign.config.degrading import PerturbConfig
from vidalign.video.clip import Clip


def perturb(clip: Clip, config: PerturbConfig, rng: np.random.Generator) -> Clip:
    """Mask and shuffle a clip. Shape, `indices`, fps and duration_s stay, so that nothing tells the model about the change.

    With `keep`, there are fewer frames, which keep the places that they had in the video. Equal generator states give equal clips, and
    masking and shuffling draw independently of each other.
    """
    area = rng.uniform(*config.mask_area) if config.mask_area else 0.0
    kept = kept_frames(len(clip.frames), config, rng)
    order = kept[frame_order(len(kept), config, rng)]
    frames = np.ascontiguousarray(clip.frames[order])
    if area:
        frames = mask_centre(frames, float(area))
    return dataclasses.replace(clip, frames=frames, **clip.taken(kept.tolist()))


def kept_frames(num_frames: int, config: PerturbConfig, rng: np.random.Generator) -> np.ndarray:
    """Positions of the frames that are left, ascending: all, a share of them, or a share of them that are neighbours. Two at least."""
    if config.keep == "all":
        return np.arange(num_frames)
    count = min(num_frames, max(2, round(num_frames * config.kept_share)))
    if config.keep == "drop":
        return np.sort(rng.permutation(num_frames)[:count])
    return np.arange(count) + int(rng.integers(num_frames - count + 1))


def mask_centre(frames: np.ndarray, area: float) -> np.ndarray:
    """A copy of frames, uint8 [F, H, W, 3], with a black square in the middle of each that covers the share `area` of H x W.

    A square that is higher or wider than the frame is cut off at its edge.
    """
    height, width = frames.shape[1:3]
    side = round((area * height * width) ** 0.5)
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    masked = frames.copy()
    masked[:, top : top + side, left : left + side] = 0
    return masked


def frame_order(num_frames: int, config: PerturbConfig, rng: np.random.Generator) -> np.ndarray:
    """Source position of each frame [F]: unchanged, reversed, in any order, or in any order within each of `num_segments` parts."""
    if config.shuffle in ("none", "reverse"):
        return np.arange(num_frames)[:: -1 if config.shuffle == "reverse" else 1]
    num_segments = 1 if config.shuffle == "global" else min(config.num_segments, max(1, num_frames // 2))
    return np.concatenate([rng.permutation(part) for part in np.array_split(np.arange(num_frames), num_segments)])
