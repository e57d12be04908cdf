"""The other clip of a pair over videos: the same video, perturbed or augmented, beside its clip in the frame cache."""

from __future__ import annotations

import pathlib

import numpy as np

from vidalign.config.degrading import ClipPairsConfig
from vidalign.stored import here
from vidalign.types import stable_hash
from vidalign.video.clip import Clip
from vidalign.video.frame_cache import is_whole, load_clip, write_clip
from vidalign.video.perturb import perturb

NUM_DRAWS = 4  # a shuffle of a few frames may leave them as they are


def alter(clip: Clip, config: ClipPairsConfig, seed: int) -> Clip | None:
    """The altered clip; None where no draw shows anything else than the clip does. Equal arguments give equal clips."""
    for number in range(NUM_DRAWS):
        rng = np.random.default_rng([seed, number])
        if config.perturb is not None:
            made = perturb(clip, config.perturb, rng)
        else:
            from vidalign.video.augment import augment  # imports torch

            assert config.augment is not None, "clips of rows are not altered"
            made = augment(clip, config.augment, rng)
        if not np.array_equal(made.frames, clip.frames):
            return made
    return None


def altered_path(path: pathlib.Path, config: ClipPairsConfig, seed: int) -> pathlib.Path:
    """Where the altered clip of the clip in this file is kept: its name says what it was made of."""
    choice = stable_hash([config.recorded(), seed])
    return path.with_name(f"{path.name.removesuffix(path.suffix)}.altered-{choice}{path.suffix}")


def write_altered(path: pathlib.Path, config: ClipPairsConfig, seed: int) -> pathlib.Path | None:
    """Write the altered clip of the clip in this file, unless it is there. Returns its file, or None where it shows the same."""
    path = pathlib.Path(here(str(path)))
    target = altered_path(path, config, seed)
    if is_whole(target):
        return target
    made = alter(load_clip(path), config, seed)
    if made is None:
        return None
    write_clip(target, made)
    return target
