"""What replies are worth by the suite's rule, and the scores that are kept of them."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.asking import Evaluation
from pipelines.suites.models import AskedModels
from pipelines.suites.task import Task
from vidalign import files
from vidalign.data.suites import measures
from vidalign.data.suites.measures import Mark
from vidalign.data.suites.question import SuiteQuestion
from vidalign.types import EvalAnswer


def scored(
    task: Task, found: Evaluation, judged: Mapping[str, Mapping[str, Any]], path: pathlib.Path
) -> tuple[list[Mark], dict[str, Any]]:
    """What each reply is worth, and the facts of one model for the table."""
    marks, lines, unread, unjudged = [], [], 0, 0
    for answer in found.answers:
        question = task.by_id[answer.example_id]
        if task.suite.is_judged(question):
            values = judged[question.id].get("values")
            unjudged += values is None
            if values is not None:
                marks.append(Mark(question=question, values=values))
        else:
            values = task.suite.mark(question, answer.text)
            unread += values is None
            marks.append(Mark(question=question, values=values or {}))
        lines.append(_line(question, answer, values))
    files.write_text_atomic(path, "".join(lines))
    judges = {verdict["judge"] for verdict in judged.values()}
    return marks, {
        "num_answers": len(found.answers),
        "num_unread": unread,
        "num_unjudged": unjudged,
        "judge": ", ".join(sorted(judges)) or None,
        "unusable_videos": [row.to_row() for row in found.quarantined],
        "scores": [measures.score(measure, marks).to_row() for measure in task.suite.measures(task.questions)],
    }


def _line(question: SuiteQuestion, answer: EvalAnswer, values: Mapping[str, float] | None) -> str:
    row = {
        "id": question.id,
        "video": question.shown,
        "task": question.task,
        "answer": question.answer,
        "reply": answer.text,
        "values": dict(values) if values is not None else None,
        **({"keys": dict(question.keys)} if question.keys else {}),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def facts(task: Task, asked: AskedModels) -> dict[str, Any]:
    return {
        "suite": task.name,
        "title": task.suite.title,
        "rule": task.suite.rule,
        "source": task.suite.source,
        "data": str(task.request.folder),
        "tasks": list(task.request.tasks),
        "subtitles": task.request.subtitles,
        "max_new_tokens": asked.evaluate.max_new_tokens,
        "video": asked.frame_spec.to_row() if asked.frame_spec else None,
        "num_questions": len(task.questions),
        "without_answer": [question.id for question in task.questions if question.options and not question.answer],
        "num_missing": len(task.questions) - len(task.present),
        "missing_videos": task.missing_videos,
    }


def difference(task: Task, marks: Mapping[str, Sequence[Mark]]) -> dict[str, Any] | None:
    """Of the last model to the first, on what both answered; None for a single model."""
    names = list(marks)
    if len(names) < 2:
        return None
    found = [measures.difference(m, marks[names[0]], marks[names[-1]]) for m in task.suite.measures(task.questions)]
    return {"from": names[0], "to": names[-1], "scores": [score.to_row() for score in found]}
