"""A reward of one's own, for groups of replies to one prompt (grpo, dapo, dr_grpo, gspo): few words.

    recipe: {name: group, rewards: {accuracy: 1.0, "brevity:brevity": 0.2}}
    objective: {name: grpo}

A reward is a function of a reply and its example, which holds the question, the ground truth, its options and its category. It returns
a number, or None where it cannot tell: such a reply is left out of its group. Rewards are added up with their weights.
"""

from __future__ import annotations

from vidalign.types import Example


def brevity(reply: str, example: Example) -> float | None:
    """1 for a reply no longer than the ground truth, 0 for one of three times its words or more, in between in proportion."""
    allowed = len(example.answer.split())
    if not allowed:
        return None
    excess = max(0, len(reply.split()) - allowed)
    return max(0.0, 1.0 - excess / (2 * allowed))
