"""A judge's work on the replies to a suite's questions: asked by the suite's own prompt, and read by its own rule.

The rows of the task are self-contained, and the suite is found by name in the judge's process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from vidalign.config.judging import JudgeConfig
from vidalign.data.suites import find_suite
from vidalign.data.suites.base import SuiteJudge
from vidalign.data.suites.question import SuiteQuestion
from vidalign.recipes.judging import Chat, Messages, shortened


def suite_rows(suite: str, replies: Iterable[tuple[SuiteQuestion, str]]) -> list[str]:
    """The rows of a `JudgeTask`, one a reply; `suite` is the name by which it is found."""
    return [
        json.dumps(
            {
                "suite": suite,
                "example_id": question.id,
                "task": question.task,
                "answer": question.answer,
                "options": question.options,
                "facts": question.facts,
                "response": reply.strip(),
            },
            ensure_ascii=False,
        )
        for question, reply in replies
    ]


def judge_suite_rows(rows: Sequence[dict[str, Any]], config: JudgeConfig, chat: Chat, name: str) -> list[dict[str, Any]]:
    """Ask the judge about replies, once more where its answer states no verdict.

    Returns:
        For each row {"example_id", "judge", "values", "explanation"}, or without "values" where neither answer states a verdict.
    """
    cases = [(_judge(row["suite"]), _question(row), row["response"]) for row in rows]
    asked: list[Messages] = [
        [{"role": "user", "content": judge.ask(question, shortened(reply, config.max_response_chars))}]
        for judge, question, reply in cases
    ]
    answers = chat(asked) if asked else []
    values = [judge.read(question, answer) for (judge, question, _), answer in zip(cases, answers, strict=True)]
    unclear = [index for index, found in enumerate(values) if found is None]
    if unclear:
        again = [
            [
                *asked[index],
                {"role": "assistant", "content": answers[index]},
                {"role": "user", "content": cases[index][0].reminder(cases[index][1])},
            ]
            for index in unclear
        ]
        for index, answer in zip(unclear, chat(again), strict=True):
            judge, question, _ = cases[index]
            values[index] = judge.read(question, answer)
            answers[index] += "\n" + answer
    made = []
    for (judge, question, _), found, answer in zip(cases, values, answers, strict=True):
        identity = f"{name.rpartition(':')[0]}:{judge.version}"
        verdict = {"example_id": question.id, "judge": identity, "explanation": answer}
        made.append(verdict if found is None else {**verdict, "values": dict(found)})
    return made


def _judge(suite: str) -> SuiteJudge:
    judge = find_suite(suite).judge
    assert judge is not None, suite
    return judge


def _question(row: dict[str, Any]) -> SuiteQuestion:
    return SuiteQuestion(
        id=row["example_id"],
        video="",
        prompt="",
        answer=row["answer"],
        task=row["task"],
        options=tuple(row["options"]),
        facts=row["facts"],
    )
