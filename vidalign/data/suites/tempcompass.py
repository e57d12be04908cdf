"""TempCompass (arXiv 2403.00476): temporal aspects (action, direction, speed, order, attribute change) in four kinds of task.

Rows: `questions/<task>.json` of the repository, {video id: {aspect: [{"question", "answer"}]}}, or the hub's folders of Parquet, one
question a row with "video_id", "dim", "question", "answer" (and "mc_question", "mc_answer" for captioning); `videos/<id>.mp4`. With
`meta_info.json` there, the finer aspects are scored too.

Source of prompts and rules: llyx97/TempCompass, run_qwen2_vl.py, eval_*.py and utils/eval_utils.py: the share of right replies by
aspect and over all, for each task. The repository asks ChatGPT about replies in which its own matching finds no answer; here
`vidalign.data.answers` reads those. A caption is right where a judge, who sees only it, picks the right option of the video's
multiple-choice question. The wording for the judge is ours.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Sequence

from vidalign.data.choices import chosen_option
from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite, SuiteJudge, Values
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import LETTERS, Row, Videos, find, object_of, rows_of
from vidalign.data.suites.replies import by_choice, by_polarity
from vidalign.prompts import substitute

FORM = "TempCompass (questions/<task>.json from the repository, or <task>/*.parquet from the hub, and videos/)"
ASPECTS = ("action", "direction", "speed", "order", "attribute_change")
ENDINGS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
    "captioning": "",
}
_OPTION = re.compile(r"([A-D])\. ?(.+)")
_CAPTION = re.compile(r"(?:Caption|Option|Sentence) ([AB12]): ?(.+)")
_CALLED = re.compile(r"\b(?:caption|sentence)\s+(?=[AB12]\b)", re.IGNORECASE)

JUDGE = """\
Answer a multiple-choice question about a video that you cannot see, from a description of it and from nothing else.

Description: {description}

{question}

First say in one sentence what in the description decides it. Then write one last line, in this form:
Answer: X
where X is the letter of the right option, or None where no option fits or the description does not say enough."""
REMINDER = "Write one line now, and nothing else: Answer: X, where X is the letter of one option, or None."


def read(request: Request) -> list[SuiteQuestion]:
    """The questions of every task whose file is there; a task that was asked for must be."""
    videos = Videos(request.folder, ("videos", "video", ""))
    fine = _fine_aspects(request.folder)
    found: list[SuiteQuestion] = []
    for task in ENDINGS:
        patterns = (f"questions/{task}.json", f"{task}/*.parquet", f"{task}.json")
        there = any(any(request.folder.glob(pattern)) for pattern in patterns)
        if request.wants(task) and (there or task in request.tasks):
            rows = _rows(find(request.folder, patterns, FORM), task, request.folder)
            found += [_question(row, task, number, videos, fine) for number, row in enumerate(rows)]
    if not found:
        find(request.folder, [f"questions/{task}.json" for task in ENDINGS], FORM)
    return found


def _rows(paths: Sequence[pathlib.Path], task: str, folder: pathlib.Path) -> Iterator[Row]:
    """Rows as the hub has them, from either form."""
    if paths[0].suffix == ".parquet":
        yield from (row for path in paths for row in rows_of(path, FORM))
        return
    chosen = (
        object_of(find(folder, ("questions/multi-choice.json", "multi-choice.json"), FORM)[0], FORM)
        if task == "captioning"
        else None
    )
    by_video = object_of(paths[0], FORM)
    for video in by_video.fields:
        by_aspect = by_video.row(video)
        for aspect in by_aspect.fields:
            for row in by_aspect.rows(aspect):
                fields = {**row.fields, "video_id": video, "dim": aspect}
                if chosen is not None:  # a caption is judged by the first multiple-choice question on its video and aspect
                    same = chosen.row(video).rows(aspect)
                    if not same:
                        raise row.refuse(
                            "question", f"has no question on {aspect} of {video} in multi-choice.json beside it"
                        )
                    fields |= {"mc_question": same[0].text("question"), "mc_answer": same[0].text("answer")}
                yield Row(row.where, fields, FORM)


def _question(row: Row, task: str, number: int, videos: Videos, fine: dict[tuple[str, str], str]) -> SuiteQuestion:
    video, aspect, asked, answer = row.text("video_id"), row.one_of("dim", ASPECTS), row.text("question"), row.text("answer")
    keys = {task: aspect}
    if (video, aspect) in fine:
        keys[f"{task}, finer"] = fine[video, aspect]
    options: tuple[str, ...] = ()
    facts = {"question": asked}
    if task in ("multi-choice", "caption_matching"):
        options, answer = _listed(row, "question", "answer", _OPTION if task == "multi-choice" else _CAPTION)
    elif task == "yes_no":
        answer = row.one_of("answer", ("yes", "no"))
    else:
        options, answer = _listed(row, "mc_question", "mc_answer", _OPTION)
        facts["question"] = row.text("mc_question")
    return SuiteQuestion(
        id=f"{task}-{number:05d}",
        video=videos.find(video, suffixes=(".mp4",)),
        prompt=asked + ENDINGS[task],
        answer=answer,
        task=task,
        options=options,
        keys=keys,
        facts=facts,
        where=row.where,
    )


def _listed(row: Row, question: str, answer: str, form: re.Pattern[str]) -> tuple[tuple[str, ...], str]:
    """The options that a question lists after its first line, as "A. text" or "1. text", and the letter of the right one."""
    lines = [line for line in row.text(question).split("\n")[1:] if line.strip()]
    matches = [form.fullmatch(line.strip()) for line in lines]
    if len(matches) < 2 or None in matches:
        raise row.refuse(question, f"must list its options one a line, got {row.text(question)!r}")
    right = [index for index, line in enumerate(lines) if line.strip() == row.text(answer).strip()]
    if len(right) != 1:
        raise row.refuse(answer, f"must be one of the options of its question, got {row.text(answer)!r}")
    return tuple(f"{match[1]}. {match[2]}" for match in matches if match), LETTERS[right[0]]


def _fine_aspects(folder: pathlib.Path) -> dict[tuple[str, str], str]:
    """The finer aspect of each video and aspect, where meta_info.json is there."""
    path = folder / "meta_info.json"
    if not path.is_file():
        return {}
    found = {}
    videos = object_of(path, FORM)
    for video in videos.fields:
        aspects = videos.row(video).row("eval_dim")
        for aspect in aspects.fields:
            if aspects.has(aspect):
                found[video, aspect] = "order" if aspect == "order" else aspects.row(aspect).text("type")
    return found


def mark(question: SuiteQuestion, reply: str) -> Values | None:
    """By the option, or by yes or no."""
    if question.task == "yes_no":
        return by_polarity(question, reply)
    return by_choice(question, _CALLED.sub("option ", reply) if question.task == "caption_matching" else reply)


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """For each task: overall, by aspect, and by finer aspect."""
    found: list[measures.Measure] = []
    for task in dict.fromkeys(question.task for question in questions):
        own = [question for question in questions if question.task == task]
        found.append(measures.mean(task, where=measures.of_task(task)))
        found += measures.breakdown(own, task, f"{task}, finer")
    return found


def _ask(question: SuiteQuestion, reply: str) -> str:
    return substitute(JUDGE, question=question.facts["question"], description=reply.strip())


def _read(question: SuiteQuestion, answer: str) -> Values | None:
    stated = re.findall(r"^\W*answer\W*:\W*(.+)$", answer, re.IGNORECASE | re.MULTILINE)
    if not stated:
        return None
    if re.match(r"\W*none\b", stated[-1], re.IGNORECASE):
        return {"correct": 0.0}
    chosen = chosen_option(stated[-1], question.options)
    return None if chosen is None else {"correct": float(LETTERS[chosen] == question.answer)}


SUITE = Suite(
    name="tempcompass",
    title="TempCompass",
    source="llyx97/TempCompass: run_qwen2_vl.py, eval_*.py, utils/eval_utils.py",
    rule="share of right replies for each task; captions by whether a judge can pick the right option from them",
    read=read,
    mark=mark,
    measures=table,
    tasks=tuple(ENDINGS),
    judge=SuiteJudge(texts=(JUDGE, REMINDER), ask=_ask, read=_read, reminder=lambda question: REMINDER),
    judged=("captioning",),
    max_new_tokens=128,
)
