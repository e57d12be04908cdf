"""What training learns from: responses in groups, a group being one prompt (a video and a question) with its responses.

A preference pair is a group of two, and the ground truth of a probe example is a group of one. A policy's own samples for one
prompt, each with its advantage, are a group of members. Batches and forward passes know only groups; what an objective sees of
them is its view (`vidalign.learning.views`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, TypeAlias

from vidalign.prompts import ONE_VIDEO
from vidalign.records import Context
from vidalign.types import Example, PreferencePair

Role: TypeAlias = Literal["chosen", "rejected", "member", "truth"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResponse:
    """One response to the prompt of a group.

    Attributes:
        group: id of its group.
        role: a side of a pair, a member of a group that is compared by advantages, or the ground truth of a probe example.
        text: the response in words, from which its tokens are made unless `token_ids` holds them.
        token_ids: the exact tokens that a policy sampled, including the end-of-turn token; empty if only the text is known.
        marks: (start, end) character spans of key phrases in `text`.
        weight: how much it counts in its group. advantage: how much better than its group it was; None if unknown.
        token_advantages: how much better each token made it, by a value model; empty without one.
        win_rate: how often it is estimated to beat a response of the policy to the same prompt; None if unknown.
        context: what is shown and said before the question, if it is not what its group shows.
        behaviour_logps: log-probabilities of `token_ids` under the policy that sampled them, which is `policy_version`.
    """

    group: str
    role: Role
    text: str = ""
    token_ids: tuple[int, ...] = ()
    marks: tuple[tuple[int, int], ...] = ()
    weight: float = 1.0
    advantage: float | None = None
    token_advantages: tuple[float, ...] = ()
    win_rate: float | None = None
    behaviour_logps: tuple[float, ...] = ()
    policy_version: str = ""
    context: Context | None = None

    def __post_init__(self) -> None:
        assert not (self.marks and self.token_ids), "marks refer to the text, whose tokens token_ids would bypass"
        assert len(self.behaviour_logps) in (0, len(self.token_ids)), "one behaviour log-prob for each token"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingGroup:
    """One prompt and its responses, in the order in which a batch holds them. `context`: by default, `video` and nothing else.

    Of a pair over videos, the second response has another context, and so the group another prompt.
    """

    id: str
    video: str
    question: str
    responses: tuple[TrainingResponse, ...]
    context: Context = ONE_VIDEO

    def __post_init__(self) -> None:
        if self.context is ONE_VIDEO:
            object.__setattr__(self, "context", Context(videos=(self.video,)))

    @property
    def prompts(self) -> tuple[tuple[Context, tuple[int, ...]], ...]:
        """Each context that is shown, with the places of the responses to it."""
        shown = [each.context or self.context for each in self.responses]
        return tuple((one, tuple(n for n, other in enumerate(shown) if other == one)) for one in dict.fromkeys(shown))

    @property
    def names(self) -> tuple[str, ...]:
        """What the reference's log-probs of each response are kept as: its side of a pair, or its place in the group."""
        return tuple(f"{each.role}_{n}" if each.role == "member" else each.role for n, each in enumerate(self.responses))

    def only(self, *roles: Role) -> TrainingGroup:
        """The group with only its responses of these roles."""
        return dataclasses.replace(self, responses=tuple(each for each in self.responses if each.role in roles))


def pair_group(pair: PreferencePair) -> TrainingGroup:
    """A pair as a group: chosen, then rejected. A pair without a rejected response is a group of one."""
    sides = [
        TrainingResponse(
            group=pair.id, role="chosen", text=pair.chosen, marks=pair.chosen_marks, win_rate=_known(pair.chosen_win_rate)
        )
    ]
    if pair.rejected:
        sides.append(
            TrainingResponse(
                group=pair.id,
                role="rejected",
                text=pair.rejected,
                marks=pair.rejected_marks,
                win_rate=_known(pair.rejected_win_rate),
                context=pair.rejected_context if pair.rejected_videos else None,
            )
        )
    return TrainingGroup(id=pair.id, video=pair.video, question=pair.question, responses=tuple(sides), context=pair.context)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def truth_group(example: Example) -> TrainingGroup:
    """The ground truth of an example, as a group of one."""
    truth = TrainingResponse(group=example.id, role="truth", text=example.answer)
    return TrainingGroup(
        id=example.id, video=example.video, question=example.question, responses=(truth,), context=example.context
    )
