"""A small picture of a video by which re-encoded and resized copies are recognised: a few frames as tiny thumbnails.

    8 frames spread over the clip ─► 8 x 8 colour means each ─► what stays (the mean over time) + what moves (the rest)

Two videos are alike where both correlate. Bitwise hashes of single frames (dHash, pHash) call any two videos of one scene equal,
because nearly all of a frame is background; what moves tells them apart. Copies that were cut, cropped or mirrored are not
recognised.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image

NUM_FRAMES, SIDE = 8, 8
SHAPE = (NUM_FRAMES, SIDE, SIDE, 3)
MIN_ALIKE = 0.95  # correlation of what stays, and of what moves
MIN_STILLS_ALIKE = 0.99  # correlation of what stays where nothing moves
STILL = 2.0  # standard deviation over time, in grey levels of 255, below which nothing moves but the noise of encoding
FLAT = 2.0  # standard deviation over the picture below which there is nothing to compare
# Luma, and the two colour differences at half weight: encoders halve their resolution, so copies differ most in them.
COLOURS = np.array([[0.299, 0.587, 0.114], [0.3505, -0.2935, -0.057], [-0.1495, -0.2935, 0.443]], np.float32)


def signature(frames: np.ndarray) -> np.ndarray:
    """Colour means, uint8 [8, 8, 8, 3], of frames uint8 [F, H, W, 3]; fewer than 8 frames are repeated."""
    picked = frames[np.linspace(0, len(frames) - 1, NUM_FRAMES).round().astype(int)]
    small = [PIL.Image.fromarray(frame).resize((SIDE, SIDE), PIL.Image.Resampling.BOX) for frame in picked]
    return np.stack([np.asarray(frame) for frame in small])


def packed(made: np.ndarray) -> str:
    """A signature as text."""
    return base64.b64encode(made.tobytes()).decode()


def unpacked(text: str) -> np.ndarray:
    """The signature that `packed` made a text of. Raises `ValueError` for anything else."""
    return np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(SHAPE)


@dataclasses.dataclass(frozen=True)
class Signatures:
    """The signatures of N videos, prepared for comparison: unit vectors, and which videos stand still or are flat."""

    stays: np.ndarray  # float32 [N, 192]
    moves: np.ndarray  # float32 [N, 1536], zero for a video in which nothing moves
    flat: np.ndarray  # bool [N]

    @classmethod
    def of(cls, signatures: Sequence[np.ndarray]) -> Signatures:
        all_frames = np.asarray(signatures, np.float32).reshape(-1, *SHAPE) @ COLOURS.T
        mean = all_frames.mean(axis=1, keepdims=True)
        moves = (all_frames - mean).reshape(len(all_frames), math.prod(SHAPE))
        moves[moves.std(axis=1) < STILL] = 0
        stays = mean.reshape(len(all_frames), math.prod(SHAPE[1:]))
        flat = stays.std(axis=1) < FLAT
        return cls(_units(stays - stays.mean(axis=1, keepdims=True)), _units(moves), flat)

    def alike(self, other: Signatures) -> Iterator[tuple[int, int]]:
        """(index here, index there) of every two videos that look alike."""
        scene = self.stays @ other.stays.T
        motion = self.moves @ other.moves.T
        both_still = np.outer(~self.moves.any(axis=1), ~other.moves.any(axis=1))
        same = ((scene >= MIN_ALIKE) & (motion >= MIN_ALIKE)) | (both_still & (scene >= MIN_STILLS_ALIKE))
        same &= ~np.logical_or.outer(self.flat, other.flat)
        for row, column in np.argwhere(same):
            yield int(row), int(column)


def _units(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)
