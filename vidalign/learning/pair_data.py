"""Which preference pairs an objective can be trained on."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from vidalign.learning.objectives.base import AnyObjective
from vidalign.types import PreferencePair


def usable_pairs(pairs: Sequence[PreferencePair], objective: AnyObjective) -> tuple[list[PreferencePair], dict[str, int]]:
    """The pairs that an objective can be trained on, and the number dropped for each reason: no_rejected, no_key_phrase."""
    kept: list[PreferencePair] = []
    dropped: collections.Counter[str] = collections.Counter()
    for pair in pairs:
        if objective.needs_rejected and not pair.rejected:
            dropped["no_rejected"] += 1
        elif objective.needs_phrases and not (pair.chosen_marks or pair.rejected_marks):
            dropped["no_key_phrase"] += 1
        else:
            kept.append(pair)
    return kept, dict(dropped)
