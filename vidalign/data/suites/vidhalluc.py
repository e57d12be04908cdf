"""VidHalluc (arXiv 2412.03735): hallucinations of actions (ACH), of their order (TSH) and of scene changes (STH).

Rows, as on the hub (chaoyuli/VidHalluc), each file one JSON object:

    ach_binaryqa.json   {index: [{"q", "a": {clip: "Yes" or "No"}}]}
    ach_mcq.json        {index: {clip: {"Question", "Choices": {letter: text}, "Correct Answer": letters}}}
    tsh.json            {index: {"video", "Question", "Correct Answer": "AB", "BA", "A" or "B"}}
    sth.json            {video: {"Scene change": "Yes" or "No", "Locations"}}

Videos are `<clip>.mp4` in the unpacked archives, in any folder. Source of prompts and rules: Vid-Halluc/VidHalluc, eval/inference and
eval/evaluation: a binary question is right where it is on all of its clips; a choice where exactly the right letters are named; an
order where the actions are named in it; of scene changes, ((MCC + 1) / 2)² of the yes and no. The score of the described locations
needs the embeddings of a model (SimCSE) and is not computed, nor is the overall score that contains it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite, Values
from vidalign.data.suites.measures import Mark, Measure, Unit
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import Row, Videos, find, object_of

FORM = "VidHalluc (ach_binaryqa.json, ach_mcq.json, tsh.json, sth.json and the videos)"
PLACES = ("data/ACH", "data/TSH", "data/STH", "ACH_videos", "TSH_videos", "STH_videos", "ACH", "TSH", "STH", "")
ONE_WORD = " Only answer with a single word 'Yes' or 'No'."
SEVERAL = " Please select the correct answer (one or more options), only return your answer(s). (e.g., ABCD)\nChoices:\n"
SORT = (
    "Sort these two actions in the order they occur in the video, and return the order you detect (i.e., AB or BA). If you only "
    "detect one action of these two in the video, return that action."
)
SCENE = (
    "Watch the given video and determine if a scene change occurs. If no change occurs, respond: 'Scene change: No, Locations: "
    "None'. If there is a scene change, respond in the format: 'Scene change: Yes, Locations: from [location1] to [location2].'"
)
_ACTION = re.compile(r"action ([ab])|(?<![a-z])([ab])[.)]")


def read(request: Request) -> list[SuiteQuestion]:
    """The questions of every task whose file is there; a task that was asked for must be."""
    videos = Videos(request.folder, PLACES)
    found: list[SuiteQuestion] = []
    for task, questions in READERS.items():
        if request.wants(task) and ((request.folder / f"{task}.json").is_file() or task in request.tasks):
            found += questions(object_of(find(request.folder, (f"{task}.json",), FORM)[0], FORM), videos)
    if not found:
        find(request.folder, [f"{task}.json" for task in READERS], FORM)
    return found


def _binary(file: Row, videos: Videos) -> list[SuiteQuestion]:
    found = []
    for index in file.fields:
        for number, row in enumerate(file.rows(index)):
            answers = row.row("a")
            for clip in answers.fields:
                found.append(
                    SuiteQuestion(
                        id=f"ach_binaryqa-{index}-{number}-{clip}",
                        video=_video(videos, clip),
                        prompt=row.text("q") + ONE_WORD,
                        answer=_yes_or_no(answers, clip),
                        task="ach_binaryqa",
                        group=f"ach_binaryqa-{index}-{number}",
                        where=row.where,
                    )
                )
    return found


def _choices(file: Row, videos: Videos) -> list[SuiteQuestion]:
    found = []
    for index in file.fields:
        clips = file.row(index)
        for clip in clips.fields:
            row = clips.row(clip)
            choices = row.row("Choices")
            options = {letter: choices.text(letter) for letter in choices.fields}
            answer = row.text("Correct Answer")
            letters = "".join(sorted(set(re.findall(r"[A-D]", answer.upper()))))
            if not letters or not set(letters) <= set(options):
                raise row.refuse("Correct Answer", f"must be letters of {', '.join(options)}, got {answer!r}")
            found.append(
                SuiteQuestion(
                    id=f"ach_mcq-{index}-{clip}",
                    video=_video(videos, clip),
                    prompt=row.text("Question")
                    + SEVERAL
                    + "".join(f"{letter}. {text}\n" for letter, text in options.items()),
                    answer=letters,
                    task="ach_mcq",
                    facts={"choices": options},
                    where=row.where,
                )
            )
    return found


def _orders(file: Row, videos: Videos) -> list[SuiteQuestion]:
    rows = {index: file.row(index) for index in file.fields}
    return [
        SuiteQuestion(
            id=f"tsh-{index}",
            video=_video(videos, row.text("video")),
            prompt=row.text("Question") + SORT,
            answer=row.one_of("Correct Answer", ("AB", "BA", "A", "B")),
            task="tsh",
            where=row.where,
        )
        for index, row in rows.items()
    ]


def _scenes(file: Row, videos: Videos) -> list[SuiteQuestion]:
    rows = {name: file.row(name) for name in file.fields}
    return [
        SuiteQuestion(
            id=f"sth-{name}",
            video=_video(videos, name),
            prompt=SCENE,
            answer=_yes_or_no(row, "Scene change"),
            task="sth",
            where=row.where,
        )
        for name, row in rows.items()
    ]


READERS: Mapping[str, Callable[[Row, Videos], list[SuiteQuestion]]] = {
    "ach_binaryqa": _binary,
    "ach_mcq": _choices,
    "tsh": _orders,
    "sth": _scenes,
}


def _video(videos: Videos, name: str) -> str:
    return videos.find(name, suffixes=(".mp4",), anywhere=True)


def _yes_or_no(row: Row, name: str) -> str:
    value = row.text(name).strip().casefold()
    if value not in ("yes", "no"):
        raise row.refuse(name, f"must be Yes or No, got {row.text(name)!r}")
    return value


def mark(question: SuiteQuestion, reply: str) -> Values | None:
    """By the rule of the question's task; of a scene change, what was said and what is so."""
    if question.task == "ach_mcq":
        named = _named_choices(reply, question.facts["choices"])
        return {"correct": float(named == question.answer)} if named else None
    if question.task == "tsh":
        order = _order(reply)
        return {"correct": float(order == question.answer)} if order else None
    word = reply.strip()
    if question.task == "sth":
        word = word.partition(", Locations: ")[0].partition(": ")[2].partition(",")[0] or word
    said = word.partition(".")[0].partition(",")[0].strip().casefold()
    return {"correct": float(said == question.answer), "yes": float(said == "yes")} if said in ("yes", "no") else None


def _named_choices(reply: str, choices: Mapping[str, str]) -> str:
    """The letters A to D that stand alone, or run together as in "ACD"; else that of the first option whose text is in the reply."""
    letters = set(re.findall(r"\b[A-D]\b", reply))
    if not letters and (run := re.fullmatch(r"\W*([A-D]{2,4})\W*", reply)):
        letters = set(run[1])
    if letters:
        return "".join(sorted(letters))
    return next((letter for letter, text in choices.items() if text.casefold() in reply.casefold()), "")


def _order(reply: str) -> str:
    """AB, BA, A or B; "" where the reply names neither action."""
    said = reply.strip().strip(".").casefold()
    if said in ("ab", "ba", "a", "b"):
        return said.upper()
    if "not clear" in said or "no clear" in said:
        return ""
    named = [(match.start(), (match[1] or match[2]).upper()) for match in _ACTION.finditer(said)]
    order = "".join(dict.fromkeys(letter for _, letter in named))
    if len(order) == 2 and re.search(r"\bafter\b", said) and not re.search(r"\b(?:before|then)\b", said):
        return order[::-1]
    return order


def table(questions: Sequence[SuiteQuestion]) -> list[Measure]:
    """A number for each task that is there."""
    found = {
        "ach_binaryqa": measures.together(
            "ach_binaryqa", questions, where=measures.of_task("ach_binaryqa"), counts="questions on all their clips"
        ),
        "ach_mcq": measures.mean("ach_mcq", where=measures.of_task("ach_mcq")),
        "tsh": measures.mean("tsh", where=measures.of_task("tsh")),
        "sth": Measure(name="sth: classification", units=_tallies, statistic=squared_matthews, counts="videos"),
    }
    return [measure for task, measure in found.items() if any(question.task == task for question in questions)]


def _tallies(marks: Sequence[Mark]) -> list[Unit]:
    """(true yes, false no, false yes, true no) of each video; a reply that says neither counts as no."""
    found = []
    for mark in marks:
        if mark.question.task == "sth":
            said, so = mark.values.get("yes", 0.0) == 1.0, mark.question.answer == "yes"
            tally = (said and so, not said and so, said and not so, not said and not so)
            found.append(Unit(key=mark.question.id, cluster=mark.question.video, sums=tuple(map(float, tally))))
    return found


def squared_matthews(sums: Any) -> Any:
    """[..., 4] tallies ─► ((MCC + 1) / 2)², MCC 0 where a row or column of the table is empty, as scikit-learn has it."""
    import numpy as np

    tp, fn, fp, tn = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    mcc = np.where(below > 0, (tp * tn - fp * fn) / np.where(below > 0, below, 1), 0.0)
    return ((mcc + 1) / 2) ** 2


SUITE = Suite(
    name="vidhalluc",
    title="VidHalluc",
    source="Vid-Halluc/VidHalluc: eval/inference/*.py, eval/evaluation/*.py",
    rule="binary questions right on all their clips; exact choices; exact orders; ((MCC + 1) / 2)² of scene changes",
    read=read,
    mark=mark,
    measures=table,
    tasks=tuple(READERS),
    max_new_tokens=64,
)
