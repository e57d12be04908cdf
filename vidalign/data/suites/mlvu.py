"""MLVU (arXiv 2406.04264), dev set: seven multiple-choice tasks on long videos, and two tasks of generation that a judge scores.

Rows: `json/<n>_<task>.json`, lists of {"video", "question", "candidates", "answer"} or, for generation, {"video", "question",
"answer"} and "scoring_points" (sub-scenes), and `video/<n>_<task>/`; or both below `MLVU/`, as on the hub (MLVU/MVLU). Source of
prompts and rules: JUNJIE99/MLVU, evaluation/multiple_choice_evaluation/choice_bench.py and evaluation/generation_evaluation: M-Avg is
the mean of the seven tasks' accuracies; a judge gives two scores of 1 to 5 to a generated text, which are added, and G-Avg is the mean
of the two tasks' sums. The opening of the model's own answer, "Best Option: (", has no place in a chat. The wording for the judge is
ours.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite, SuiteJudge, Values
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import Row, Videos, answerless, find, refuse_many, rows_of
from vidalign.data.suites.replies import by_choice, lettered
from vidalign.prompts import substitute

FORM = "the dev set of MLVU (json/<n>_<task>.json and video/<n>_<task>/)"
CHOICE: Mapping[str, str] = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
GENERATION: Mapping[str, str] = {"sub_scene": "8_sub_scene", "summary": "9_summary"}
WATCH = "Carefully watch this video and pay attention to every detail. Based on your observations, "
SELECT = f"{WATCH}select the best option that accurately addresses the question."
ANSWER = f"{WATCH}answer the given questions."

SUB_SCENE_JUDGE = """\
You score an answer to a question about a scene of a video. You cannot see the video. Points that a right answer makes are listed.

Question: {question}
Points:
{points}
Answer to score: {reply}

Give two scores.
Accuracy: score each point 5 where the answer makes it rightly, 3 where it says something about it that is not quite right, 1 where it
misses it; the accuracy is the average of these.
Relevance, from 1 to 5, whether or not the answer is right: 5 all of it is about the question and sure of itself; 4 most of it, and it
seems sure; 3 in the main, but unsure; 2 partly, with much that is beside the question; 1 not about the question.
First explain. Then write two last lines, in this form:
Accuracy: N
Relevance: N"""
SUMMARY_JUDGE = """\
You score a summary of a video. You cannot see the video. A summary that is right is given.

Right summary: {answer}
Summary to score: {reply}

Give two whole scores from 1 to 5.
Completeness: 5 all key points and main contents are there; 4 nearly all; 3 most; 2 some, with many missing; 1 hardly any.
Reliability: 5 no errors, no contradictions, clear; 4 hardly an error, no contradiction; 3 small errors, hardly a contradiction, fairly
clear; 2 several errors and some contradictions; 1 many errors and contradictions, confusing. Details that the right summary lacks are
no errors where they fit it and are plausible.
First explain. Then write two last lines, in this form:
Completeness: N
Reliability: N"""
SCORES = {"sub_scene": ("Accuracy", "Relevance"), "summary": ("Completeness", "Reliability")}


def read(request: Request) -> list[SuiteQuestion]:
    """The questions of every task whose file is there; a task that was asked for must be."""
    videos: dict[str, Videos] = {}
    found: list[SuiteQuestion] = []
    for task, name in {**CHOICE, **GENERATION}.items():
        patterns = (f"json/{name}.json", f"MLVU/json/{name}.json", f"data/{name}.json", f"{name}.json")
        there = any((request.folder / pattern).is_file() for pattern in patterns)
        if request.wants(task) and (there or task in request.tasks):
            videos[task] = Videos(request.folder, (f"video/{name}", f"MLVU/video/{name}", f"video/{name[2:]}", name))
            rows = rows_of(find(request.folder, patterns, FORM)[0], FORM)
            own = [_question(row, task, number, videos[task]) for number, row in enumerate(rows)]
            refuse_many([answerless(row) for row, question in zip(rows, own, strict=True) if not question.answer], len(rows))
            found += own
    if not found:
        find(request.folder, [f"json/{name}.json" for name in (*CHOICE.values(), *GENERATION.values())], FORM)
    return found


def _question(row: Row, task: str, number: int, videos: Videos) -> SuiteQuestion:
    asked, answer = row.text("question", blank=True), row.text("answer", blank=task in CHOICE)
    options: tuple[str, ...] = ()
    facts: dict[str, object] = {}
    if task in CHOICE:
        options = row.texts("candidates")
        answer = row.letters("answer", options)
        prompt = (
            f"{SELECT}\nQuestion: {asked}\nOptions:\n{lettered(options, '({letter}) {option}')}\nOnly give the best option."
        )
    else:
        prompt = f"{ANSWER}\n{asked}"
        facts = {"question": asked, "points": row.texts("scoring_points", least=1) if task == "sub_scene" else ()}
    return SuiteQuestion(
        id=f"{task}-{number:04d}",
        video=videos.find(row.text("video")),
        prompt=prompt,
        answer=answer,
        task=task,
        options=options,
        keys={"task": task},
        facts=facts,
        where=row.where,
    )


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """M-Avg and its tasks, then G-Avg and its tasks with both scores, as far as they are there."""
    found: list[measures.Measure] = []
    if any(question.task in CHOICE for question in questions):
        found.append(measures.mean_of_means("M-Avg", _task_in(CHOICE), questions))
        found += measures.breakdown([question for question in questions if question.task in CHOICE], "task")
    if any(question.task in GENERATION for question in questions):
        found.append(measures.mean_of_means("G-Avg", _task_in(GENERATION), questions, "total", top=10.0))
    for task in (task for task in GENERATION if any(question.task == task for question in questions)):
        where = measures.of_task(task)
        found.append(measures.mean(f"task: {task}", "total", where=where, top=10.0))
        found += [measures.mean(f"{task}: {name.lower()}", name.lower(), where=where, top=5.0) for name in SCORES[task]]
    return found


def _task_in(tasks: Collection[str]) -> measures.Kind:
    return lambda question: question.task if question.task in tasks else ""


def _ask(question: SuiteQuestion, reply: str) -> str:
    if question.task == "summary":
        return substitute(SUMMARY_JUDGE, answer=question.answer, reply=reply.strip())
    points = "\n".join(f"- {point}" for point in question.facts["points"])
    return substitute(SUB_SCENE_JUDGE, question=question.facts["question"], points=points, reply=reply.strip())


def _read(question: SuiteQuestion, answer: str) -> Values | None:
    found: dict[str, float] = {}
    for name in SCORES[question.task]:
        stated = re.findall(rf"^\W*{name}\W*:\W*(\d(?:\.\d+)?)\W*(?:/\s*5\W*)?$", answer, re.IGNORECASE | re.MULTILINE)
        if not stated or not 1 <= float(stated[-1]) <= 5:
            return None
        found[name.lower()] = float(stated[-1])
    return {**found, "total": sum(found.values())}


def _remind(question: SuiteQuestion) -> str:
    first, second = SCORES[question.task]
    return f'Write two lines now, and nothing else: "{first}: N" and "{second}: N", each with one number from 1 to 5.'


SUITE = Suite(
    name="mlvu",
    title="MLVU (dev)",
    source="JUNJIE99/MLVU: evaluation/multiple_choice_evaluation/choice_bench.py, evaluation/generation_evaluation/*.py",
    rule="mean of the tasks' shares of named options; generation by a judge, 2 to 10",
    read=read,
    mark=by_choice,
    measures=table,
    tasks=(*CHOICE, *GENERATION),
    judge=SuiteJudge(texts=(SUB_SCENE_JUDGE, SUMMARY_JUDGE), ask=_ask, read=_read, reminder=_remind),
    judged=tuple(GENERATION),
    max_new_tokens=1024,
)
