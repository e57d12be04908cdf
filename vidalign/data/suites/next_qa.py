"""NExT-QA (arXiv 2105.08276): causal, temporal and descriptive questions, with five options (mc) or open-ended (oe).

Rows: `test.csv` or else `val.csv` of doc-doc/NExT-QA (with columns a0 to a4) and of doc-doc/NExT-OE (without), or the hub's
`MC/*.parquet` and `OE/*.parquet`; `NExTVideo/<id>.mp4`, or by `map_vid_vidorID.json`. A second right answer of open-ended questions is
read from `add_reference_answer_<split>.json` or the column additional_ref_answer.

Source of the rules: doc-doc/NExT-QA, eval_mc.py, and doc-doc/NExT-OE, eval_oe.py and metrics.py; of the prompts:
EvolvingLMMs-Lab/lmms-eval, tasks/nextqa. With options: the share of right answers by type. Open-ended: WUPS at 0 and 0.9 (for the
binary and counting types, equality), which needs WordNet (`vidalign.data.suites.wups`).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite, Values
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import Row, Videos, find, letters_of, object_of, rows_of
from vidalign.data.suites.replies import by_choice, lettered
from vidalign.data.suites.wups import check_installed, words_of, wups
from vidalign.errors import DataError

FORM = "NExT-QA (test.csv or val.csv, or MC/*.parquet and OE/*.parquet, and NExTVideo/)"
TYPES: Mapping[str, str] = {
    "CW": "causal: why",
    "CH": "causal: how",
    "TN": "temporal: before or after",
    "TP": "temporal: before or after",
    "TC": "temporal: when",
    "DB": "descriptive: yes or no",
    "DC": "descriptive: count",
    "DL": "descriptive: place",
    "DO": "descriptive: other",
}
EXACT = ("DB", "DC")  # of open-ended questions
OPTIONS = tuple(f"a{index}" for index in range(5))
PATTERNS = {
    "mc": ("MC/test*.parquet", "MC/*.parquet", "dataset/nextqa/test.csv", "test.csv", "dataset/nextqa/val.csv", "val.csv"),
    "oe": ("OE/test*.parquet", "OE/*.parquet", "oe/test.csv", "test.csv", "oe/val.csv", "val.csv"),
}
SHORT = "\nAnswer a question using a short phrase or sentence."


def read(request: Request) -> list[SuiteQuestion]:
    """The questions with options and the open-ended ones, as far as their files are there; what was asked for must be."""
    names = _names(request.folder)
    videos = Videos(request.folder, ("NExTVideo", "videos", "video", ""))
    found: list[SuiteQuestion] = []
    for task, patterns in PATTERNS.items():
        rows = [row for path in _present(request.folder, patterns, task) for row in rows_of(path, FORM)]
        if rows and request.wants(task):
            more = _more_answers(request.folder, rows[0]) if task == "oe" else {}
            found += [_question(row, task, videos, names, more) for row in rows]
        elif task in request.tasks:
            raise DataError(f"{request.folder} holds no rows of task {task}; put {FORM} there, as it is published")
    if not found:
        find(request.folder, (*PATTERNS["mc"], *PATTERNS["oe"]), FORM)
    return found


def _present(folder: pathlib.Path, patterns: Sequence[str], task: str) -> list[pathlib.Path]:
    """The files of one task: both tasks publish a test.csv, and that with options has a column a0."""
    for pattern in patterns:
        paths = sorted(folder.glob(pattern))
        if paths and paths[0].suffix != ".csv":
            return paths
        has_options = bool(paths) and "a0" in rows_of(paths[0], FORM)[0].fields
        if paths and has_options == (task == "mc"):
            return paths
    return []


def _names(folder: pathlib.Path) -> Mapping[str, str]:
    for name in ("map_vid_vidorID.json", "dataset/nextqa/map_vid_vidorID.json"):
        if (folder / name).is_file():
            row = object_of(folder / name, FORM)
            return {video: row.text(video) for video in row.fields}
    return {}


def _more_answers(folder: pathlib.Path, first: Row) -> Mapping[tuple[str, str], str]:
    split = pathlib.Path(first.where.rpartition(": row ")[0]).stem
    for path in (folder / f"add_reference_answer_{split}.json", folder / "oe" / f"add_reference_answer_{split}.json"):
        if path.is_file():
            file = object_of(path, FORM)
            rows = {video: file.row(video) for video in file.fields}
            return {(video, qid): row.text(qid) for video, row in rows.items() for qid in row.fields}
    return {}


def _question(
    row: Row, task: str, videos: Videos, names: Mapping[str, str], more: Mapping[tuple[str, str], str]
) -> SuiteQuestion:
    video, qid, kind = row.word("video"), row.word("qid"), row.one_of("type", tuple(TYPES))
    asked = row.text("question").strip()
    if task == "mc":
        options = tuple(row.word(name).strip() for name in OPTIONS)
        right = row.whole("answer")
        if not 0 <= right < len(options):
            raise row.refuse("answer", f"must be the index of one of five options, got {right}")
        prompt, answer, facts = f"{asked}\n{lettered(options)}", letters_of(options[right], options), {}
    else:
        options, prompt, answer = (), asked + SHORT, row.word("answer")
        other = more.get((video, qid)) or (
            row.text("additional_ref_answer") if row.fields.get("additional_ref_answer") else ""
        )
        facts = {"answers": [answer, other] if other else [answer], "type": kind}
    return SuiteQuestion(
        id=f"{task}-{video}-{qid}",
        video=videos.find(names.get(video, video), suffixes=(".mp4",)),
        prompt=prompt,
        answer=answer,
        task=task,
        options=options,
        keys={task: TYPES[kind], f"{task}, all of": TYPES[kind].partition(":")[0]},
        facts=facts,
        where=row.where,
    )


def mark(question: SuiteQuestion, reply: str) -> Values | None:
    """By the option that is named; open-ended, the better score of the one or two right answers."""
    if question.task == "mc":
        return by_choice(question, reply)
    said = words_of(reply)
    right = [words_of(answer) for answer in question.facts["answers"]]
    if question.facts["type"] in EXACT:
        equal = float(said in right)
        return {"wups": equal, "wups at 0.9": equal}
    return {
        "wups": max(wups(said, words, 0.0) for words in right),
        "wups at 0.9": max(wups(said, words, 0.9) for words in right),
    }


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """Accuracy overall and by type; WUPS overall and by type."""
    found: list[measures.Measure] = []
    for task, name, value in (("mc", "mc: accuracy", "correct"), ("oe", "oe: WUPS", "wups")):
        own = [question for question in questions if question.task == task]
        if own:
            found.append(measures.mean(name, value, where=measures.of_task(task)))
            if task == "oe":
                found.append(measures.mean("oe: WUPS at 0.9", "wups at 0.9", where=measures.of_task(task)))
            found += measures.breakdown(own, f"{task}, all of", task, value=value)
    return found


def _needs(questions: Sequence[SuiteQuestion]) -> None:
    if any(question.task == "oe" for question in questions):
        check_installed()


SUITE = Suite(
    name="next-qa",
    title="NExT-QA",
    source="doc-doc/NExT-QA: eval_mc.py; doc-doc/NExT-OE: eval_oe.py, metrics.py; EvolvingLMMs-Lab/lmms-eval: lmms_eval/tasks/nextqa",
    rule="share of questions whose option is named; open-ended, WUPS",
    read=read,
    mark=mark,
    measures=table,
    tasks=tuple(PATTERNS),
    max_new_tokens=64,
    needs=_needs,
)
