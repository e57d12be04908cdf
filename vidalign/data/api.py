"""`vidalign.judge_reply`: one call that says whether a reply is right."""

from __future__ import annotations

from collections.abc import Sequence

from vidalign.data.answers import is_correct, normalise
from vidalign.types import Example


def judge_reply(reply: str, *, question: str, answer: str, options: Sequence[str] = ()) -> bool | None:
    """Whether `reply` is right: True, False, or None where no rule can tell.

    The rule is the one that evaluation uses (`vidalign.data.answers.is_correct`): an exact match after normalisation or, where
    `options` are given, any way to name the right one, such as "B", "(B)", "B. left" or "left". No rule can tell if `answer` has
    no words. If there are options and `answer` names none of them, only a reply equal to `answer` is known to be right.
    """
    example = Example(id="", video="", question=question, answer=answer, options=tuple(options))
    if not normalise(answer):
        return None
    if is_correct(reply, example):
        return True
    tellable = not options or not normalise(reply) or any(is_correct(option, example) for option in options)
    return False if tellable else None
