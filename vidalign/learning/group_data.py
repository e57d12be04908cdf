"""Groups of responses for training: which of them an objective learns from, and with which advantages."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from vidalign.errors import DataError
from vidalign.learning.advantages import group_advantages, is_uniform
from vidalign.learning.objectives.groups import GroupObjective
from vidalign.learning.sequences import Role, TrainingGroup, TrainingResponse
from vidalign.learning.value import token_advantages
from vidalign.types import ResponseGroup

if TYPE_CHECKING:
    from torch import Tensor

CHOSEN: Role = "chosen"
REJECTED: Role = "rejected"
Sampled = Mapping[tuple[str, int], tuple[tuple[int, ...], tuple[float, ...]]]
"""By example and candidate: a response's token ids, and the log-prob of each under the policy that sampled it."""


def usable_groups(groups: Sequence[ResponseGroup], objective: GroupObjective) -> tuple[list[ResponseGroup], dict[str, int]]:
    """The groups that an objective is trained on, and the number dropped for each reason: all_alike."""
    kept: list[ResponseGroup] = []
    dropped: collections.Counter[str] = collections.Counter()
    for group in groups:
        if objective.drop_uniform and is_uniform(group.rewards):
            dropped["all_alike"] += 1
        else:
            kept.append(group)
    return kept, dict(dropped)


def training_group(group: ResponseGroup, sampled: Sampled, objective: GroupObjective) -> TrainingGroup:
    """A group with its responses' tokens, behaviour log-probs and advantages.

    All groups of a round have the same number of responses, because a batch needs that. A response that is left out has weight 0 and
    one token of another in place of its own, which may be such as no response can hold.

    Raises:
        DataError: a response that is learned from is not among those of the round.
    """
    advantages = group_advantages(group.rewards, scale=objective.scale)
    learned = [number for number, why in enumerate(group.left_out) if not why]
    absent = [number for number in learned if not sampled.get((group.example_id, number), ((), ()))[0]]
    if absent:
        raise DataError(
            f"the responses of this round hold no tokens of candidate {absent[0]} of example {group.example_id}, which its group "
            "learns from; delete the round's pairs folder to make the groups again"
        )
    stand_in = sampled[group.example_id, learned[0]][0][:1]
    responses = []
    for number, why in enumerate(group.left_out):
        ids, logps = (stand_in, (0.0,)) if why else sampled[group.example_id, number]
        responses.append(
            TrainingResponse(
                group=group.id,
                role="member",
                text=group.texts[number],
                token_ids=ids,
                behaviour_logps=logps,
                advantage=float(advantages[number]),
                weight=0.0 if why else 1.0,
                policy_version=group.policy_version,
            )
        )
    return TrainingGroup(
        id=group.id, video=group.video, question=group.question, responses=tuple(responses), context=group.context
    )


def extremes(group: TrainingGroup) -> TrainingGroup | None:
    """The best and the worst response of a group as chosen and rejected, for what is measured of pairs; None if all are alike."""
    learned = [each for each in group.responses if each.weight]
    best, worst = (pick(learned, key=lambda each: each.advantage or 0.0) for pick in (max, min))
    if best.advantage == worst.advantage:
        return None
    pair = [dataclasses.replace(each, role=side) for each, side in ((best, CHOSEN), (worst, REJECTED))]
    return dataclasses.replace(group, responses=tuple(pair))


def first_learned(group: TrainingGroup) -> TrainingGroup:
    """The first response of a group that is learned from, alone, as the chosen one."""
    first = next(each for each in group.responses if each.weight)
    return dataclasses.replace(group, responses=(dataclasses.replace(first, role=CHOSEN),))


def with_token_advantages(
    groups: Sequence[TrainingGroup], values: Callable[[str], Mapping[str, Tensor]], *, lam: float
) -> list[TrainingGroup]:
    """The groups of a round with an advantage for each token, whitened over the round (`vidalign.learning.value`).

    Responses that are left out have 0 and do not count. `values`: by group id, the value model's values [T] of each response by name.
    """
    kept = [values(group.id) for group in groups]
    known = [
        tensors[name]
        for group, tensors in zip(groups, kept, strict=True)
        for name, each in zip(group.names, group.responses, strict=True)
        if each.weight
    ]
    made = iter(token_advantages(known, lam))
    return [
        dataclasses.replace(
            group,
            responses=tuple(
                dataclasses.replace(
                    each, token_advantages=tuple(next(made).tolist()) if each.weight else (0.0,) * len(each.token_ids)
                )
                for each in group.responses
            ),
        )
        for group in groups
    ]
