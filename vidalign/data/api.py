"""`vidalign.judge_reply`: one call that says whether a reply is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from vidalign.data.answers import AnswerType, verdict
from vidalign.data.words import normalise
from vidalign.types import Example


def judge_reply(
    reply: str, *, question: str, answer: str, options: Sequence[str] = (), answer_type: AnswerType | Literal[""] = ""
) -> bool | None:
    """Whether `reply` is right: True, False, or None where no rule can tell.

    The rule is the one by which evaluation counts (`vidalign.data.answers.verdict`): where `options` are given, the one that the reply
    names ("B", "The answer is (B).", "left"); yes or no; a number in digits or words; else the answer's own words. No rule can tell
    where `answer` has no words, where there are options and `answer` names none of them, and whether a paraphrase of a short or
    free answer is right. `answer_type` names the kind of the answer where the question and the answer do not show it.
    """
    if not normalise(answer):
        return None
    return verdict(
        reply, Example(id="", video="", question=question, answer=answer, options=tuple(options), answer_type=answer_type)
    )
