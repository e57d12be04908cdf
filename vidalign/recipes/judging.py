"""What a judge is asked and how its reply is read: a text model scores a response 1-5, a caption standing in for the video.

Source: LLaVA-Hound-DPO, arXiv 2404.01258 (the wording is ours). A reply without one clear score has none: nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from vidalign import prompts
from vidalign.config.recipes import JudgeConfig
from vidalign.types import Judgement, stable_hash

Messages: TypeAlias = list[dict[str, str]]
Chat: TypeAlias = Callable[[Sequence[Messages]], list[str]]  # conversations ─► the next reply of each, greedy

REMINDER = (
    'Your reply had no line of the form "Score: N" with one number from 1 to 5. Write that line now, and nothing else.'
)

_SCORE = re.compile(
    r"^[\W_]*score[\W_]*[:=][\s*_]*([1-5](?:\.\d+)?)[\s*_]*(?:/\s*5|out of 5)?[\s*_.]*$", re.IGNORECASE | re.MULTILINE
)


def judge_prompt(template: str, *, caption: str, question: str, answer: str, response: str, max_response_chars: int) -> str:
    """Fill the template by plain replacement, so that braces in a text are left alone. A longer response is cut off."""
    if len(response) > max_response_chars:
        response = response[:max_response_chars] + " […]"
    return prompts.substitute(template, caption=caption, question=question, answer=answer, response=response)


def parse_score(reply: str) -> float | None:
    """The score in [1, 5] of the reply's lines "Score: N"; None without such a line, or when two of them disagree."""
    found = {float(number) for number in _SCORE.findall(reply)}
    score = found.pop() if len(found) == 1 else None
    return score if score is not None and score <= 5 else None


def explanation(reply: str) -> str:
    """The reply without its score lines."""
    return _SCORE.sub("", reply).strip()


def prompt_version(template: str) -> str:
    """Eight hex digits that name a template, stored with every score: another wording is another judge."""
    return stable_hash([template, REMINDER], 8)


def judge_rows(rows: Sequence[dict[str, Any]], config: JudgeConfig, chat: Chat, name: str) -> list[dict[str, Any]]:
    """A `Judgement` row for each row, or {example_id, response, judge, reason: unparsable_judgement, message: both replies}."""
    asked: list[Messages] = [
        [
            {
                "role": "user",
                "content": judge_prompt(
                    config.prompt,
                    caption=row["caption"],
                    question=row["question"],
                    answer=row["answer"],
                    response=row["response"],
                    max_response_chars=config.max_response_chars,
                ),
            }
        ]
        for row in rows
    ]
    replies = chat(asked) if asked else []
    scores = [parse_score(reply) for reply in replies]
    unclear = [index for index, score in enumerate(scores) if score is None]
    if unclear:
        again = [
            [
                *asked[index],
                {"role": "assistant", "content": replies[index]},
                {"role": "user", "content": REMINDER},
            ]
            for index in unclear
        ]
        for index, reply in zip(unclear, chat(again), strict=True):
            scores[index] = parse_score(reply)
            replies[index] += "\n" + reply
    return [
        Judgement(
            example_id=row["example_id"],
            response=row["response"],
            score=score,
            explanation=explanation(reply),
            judge=name,
        ).to_row()
        if score is not None
        else {
            "example_id": row["example_id"],
            "response": row["response"],
            "judge": name,
            "reason": "unparsable_judgement",
            "message": reply,
        }
        for row, reply, score in zip(rows, replies, scores, strict=True)
    ]
