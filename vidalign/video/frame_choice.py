"""Which frames of a video a question calls for (ReAgent-V, arXiv 2506.01300, section 3.1). Pure functions of NumPy arrays.

    s   relevance of each frame to the question        e   its entropy: mean over R, G, B of -sum p log2 p of 256 bins
    pass m = 0..9, on the frames that are left:        keep those with  minmax(minmax(s) * minmax(e)) > 0.03 * 1.01^m
    fewer than `keep` left:                            add the `keep` best by  minmax(s) * minmax(e)  of all frames

minmax of equal numbers is 0. The frame that is worst in a pass has the score 0, so that every pass drops at least one. Ours are:
what is the same for all frames (a relevance that is not known, the entropy of a video of one picture) is left out of both products;
ties go to frames that are spread over the video; and `most` bounds what is left, by the score among all frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NUM_BINS = 256
THRESHOLD, GROWTH, PASSES = 0.03, 1.01, 10  # the authors'


def entropies(frames: np.ndarray) -> np.ndarray:
    """How much each frame holds, in bits: float64 [F] of uint8 [F, H, W, 3]."""
    found = np.zeros(len(frames))
    for at, frame in enumerate(frames):
        for channel in range(frame.shape[-1]):
            counts = np.bincount(frame[..., channel].ravel(), minlength=NUM_BINS)
            shares = counts[counts > 0] / frame[..., channel].size
            found[at] -= (shares * np.log2(shares)).sum() / frame.shape[-1]
    return np.maximum(found, 0.0)  # of one colour: -0.0


def minmax(values: np.ndarray) -> np.ndarray:
    """Values moved and scaled to [0, 1]; equal ones are 0."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros(len(values))


def scores(factors: Sequence[np.ndarray]) -> np.ndarray:
    """The score in [0, 1] of each of these frames among them, float64 [F], by one or both of relevance and entropy."""
    return np.prod([minmax(values) for values in factors], axis=0)


def passed(factors: Sequence[np.ndarray], count: int) -> np.ndarray:
    """The positions of `count` frames that the passes leave, ascending; perhaps none."""
    left = np.arange(count)
    for number in range(PASSES):
        if not len(left):
            break
        own = minmax(scores([values[left] for values in factors]))
        still = left[own > THRESHOLD * GROWTH**number]
        if len(still) == len(left):
            break
        left = still
    return left


def chosen(relevance: Sequence[float] | np.ndarray | None, entropy: np.ndarray, *, keep: int, most: int) -> list[int]:
    """The positions of the frames to show, ascending: at least `keep` of them, if there are so many, and at most `most`.

    `relevance` [F] are finite numbers, or None where nothing says it; `entropy` [F] as `entropies` gives it.
    """
    count = len(entropy)
    if count <= keep:
        return list(range(count))
    known = [np.asarray(values, np.float64) for values in (relevance, entropy) if values is not None]
    factors = [values for values in known if values.max() > values.min()]
    if not factors:
        return sorted(np.argsort(spread(count))[:keep].tolist())
    best = np.lexsort((spread(count), -scores(factors)))  # by score, then as ties go
    left = passed(factors, count)
    if len(left) < keep:
        left = np.union1d(left, best[:keep])
    if len(left) > most:
        wanted = set(left.tolist())
        left = np.array([at for at in best.tolist() if at in wanted][:most])
    return sorted(left.tolist())


def spread(count: int) -> np.ndarray:
    """The rank of each of so many positions in an order whose every beginning is spread evenly: that of their bits, read backwards."""
    bits = max(1, (count - 1).bit_length())
    backwards = [int(format(at, f"0{bits}b")[::-1], 2) for at in range(count)]
    return np.argsort(np.argsort(backwards, kind="stable"), kind="stable")
