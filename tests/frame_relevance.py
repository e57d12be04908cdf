"""Relevances of a user's own, which decoders import."""

import numpy as np

NUMBER = 7


def late(frames, question):
    """The later the better, or the earlier where the question says so."""
    order = np.arange(len(frames), dtype=float)
    return order[::-1] if "first" in question else order


def broken(frames, question):
    return 1 / 0


def short_of_one(frames, question):
    return np.zeros(len(frames) - 1)
