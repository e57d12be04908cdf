"""The groups of a report: some drawn at random, each with its replies, their rewards and thumbnails of its video."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from typing import Any

from pipelines.reports.examples import Strip, thumbnails
from vidalign.types import ResponseGroup

NUM_GROUPS = 6


def drawn_groups(groups: Sequence[ResponseGroup], strip: Strip, draw: random.Random) -> list[dict[str, Any]]:
    """Half a dozen groups, in their own order; replies with the highest reward first, then those that are left out."""
    taken = sorted(draw.sample(range(len(groups)), min(NUM_GROUPS, len(groups))))
    return [
        {"group": groups[at], "frames": thumbnails(groups[at].context, strip), "replies": _replies(groups[at])}
        for at in taken
    ]


def _replies(group: ResponseGroup) -> list[dict[str, Any]]:
    parts = json.loads(group.parts)
    replies = [
        {
            "text": text,
            "reward": None if math.isnan(reward) or not parts else reward,
            "left_out": why,
            "parts": {name: values[place] for name, values in parts.items()},
        }
        for place, (text, reward, why) in enumerate(zip(group.texts, group.rewards, group.left_out, strict=True))
    ]
    return sorted(replies, key=lambda reply: (reply["reward"] is None, -(reply["reward"] or 0.0)))
