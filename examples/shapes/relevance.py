"""How much a frame has to do with a question, by a rule: the share of its pixels that have a colour which the question names.

video: {choice: {kind: relevance, relevance: "examples.shapes.relevance:colour_words"}}
"""

from __future__ import annotations

import re

import numpy as np

from examples.shapes.world import RGB

NEAR = 90  # the largest sum of differences in R, G and B


def colour_words(frames: np.ndarray, question: str) -> np.ndarray:
    """Shares in [0, 1], float64 [F], for frames uint8 [F, H, W, 3]; all 0 for a question that names no colour."""
    found = np.zeros(len(frames))
    for word in set(re.findall(r"\w+", question.lower())) & RGB.keys():
        apart = np.abs(frames.astype(np.int16) - np.array(RGB[word], np.int16)).sum(axis=-1)
        found += (apart <= NEAR).mean(axis=(1, 2))
    return found
