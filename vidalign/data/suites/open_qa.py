"""MSVD-QA, MSRVTT-QA and TGIF-QA (frame questions): short open answers that a judge compares with the right one, after Video-ChatGPT.

Rows: `test_q.json` {"video_name", "question", "question_id"} and `test_a.json` {"answer", "question_id"}, as Video-LLaVA publishes
all three; or the data sets' own: `test_qa.json` {"id", "video_id", "question", "answer"} for MSVD and MSRVTT (with
`youtube_mapping.txt` for MSVD), and `Test_frameqa_question.csv` ("gif_name", "question", "answer", separated by tabs) for TGIF.

Source of prompt and rule: mbzuai-oryx/Video-ChatGPT, video_chatgpt/eval/run_inference_activitynet_qa.py and
quantitative_evaluation/evaluate_activitynet_qa.py: the question is asked as it is; a judge says whether the answer is right and gives
it a score of 0 to 5; reported are the share of yes and the mean score. The published numbers are by gpt-3.5-turbo; the wording is
ours, and numbers by different judges cannot be compared.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping, Sequence

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite, SuiteJudge, Values
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import VIDEO_SUFFIXES, Row, Videos, find, rows_of
from vidalign.errors import DataError
from vidalign.prompts import substitute

JUDGE = """\
You compare an answer to a question about a video with the right answer. You cannot see the video. What matters is whether both mean
the same; synonyms and other words for the same are right.

Question: {question}
Right answer: {answer}
Answer to judge: {reply}

Write two lines, in this form, and nothing else:
Correct: yes or no
Score: N
where N is a whole number from 0 to 5, and 5 is the closest in meaning."""
REMINDER = 'Write two lines now, and nothing else: "Correct: yes" or "Correct: no", and "Score: N" with one whole number from 0 to 5.'
PLACES = ("videos", "videos/all", "mp4", "video", "YouTubeClips", "TrainValVideo", "TestVideo", "gifs", "")


def read(form: str, request: Request) -> list[SuiteQuestion]:
    """The questions of the test split, in file order."""
    videos = Videos(request.folder, PLACES)
    paths = find(request.folder, ("test_q.json", "test_qa.json", "Test_frameqa_question.csv"), form)
    if paths[0].name == "test_q.json":
        return _joined(paths[0], form, videos)
    if paths[0].name == "Test_frameqa_question.csv":
        rows = rows_of(paths[0], form, delimiter="\t")
        return [
            _question(row, f"tgif-{number:06d}", row.text("gif_name"), row.word("answer"), videos)
            for number, row in enumerate(rows)
        ]
    names = _names(request.folder)
    return [
        _question(
            row,
            row.word("id"),
            names.get(f"vid{row.word('video_id')}", f"video{row.word('video_id')}"),
            row.word("answer"),
            videos,
        )
        for row in rows_of(paths[0], form)
    ]


def _joined(path: pathlib.Path, form: str, videos: Videos) -> list[SuiteQuestion]:
    """Questions with the answers of the other file that have their ids."""
    other = find(path.parent, ("test_a.json",), form)[0]
    answers = {row.word("question_id"): row.word("answer") for row in rows_of(other, form)}
    found = []
    for row in rows_of(path, form):
        key = row.word("question_id")
        if key not in answers:
            raise row.refuse("question_id", f"{key!r} has no answer in {other}")
        found.append(_question(row, key, row.word("video_name"), answers[key], videos))
    return found


def _names(folder: pathlib.Path) -> Mapping[str, str]:
    """MSVD's names of videos by their ids ("vid1201"), from youtube_mapping.txt: "name id" a line."""
    path = folder / "youtube_mapping.txt"
    if not path.is_file():
        return {}
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split()
        if len(parts) != 2:
            raise DataError(f"{path}:{number}: must be 'name id', got {line!r}; give the file as MSVD has it")
        found[parts[1]] = parts[0]
    return found


def _question(row: Row, key: str, name: str, answer: str, videos: Videos) -> SuiteQuestion:
    asked = row.text("question")
    return SuiteQuestion(
        id=key,
        video=videos.find(
            name, suffixes=("", *VIDEO_SUFFIXES) if pathlib.PurePath(name).suffix in VIDEO_SUFFIXES else VIDEO_SUFFIXES
        ),
        prompt=asked,
        answer=answer,
        facts={"question": asked},
        where=row.where,
    )


def _mark(question: SuiteQuestion, reply: str) -> Values | None:
    raise AssertionError("only a judge scores these replies")


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """Accuracy, and the mean score."""
    return [measures.mean("accuracy"), measures.mean("score", "score", top=5.0)]


def _ask(question: SuiteQuestion, reply: str) -> str:
    return substitute(JUDGE, question=question.facts["question"], answer=question.answer, reply=reply.strip())


def _read(question: SuiteQuestion, answer: str) -> Values | None:
    said = re.findall(r"^\W*correct\W*:\W*(yes|no)\b", answer, re.IGNORECASE | re.MULTILINE)
    score = re.findall(r"^\W*score\W*:\W*([0-5])\W*(?:/\s*5\W*)?$", answer, re.IGNORECASE | re.MULTILINE)
    if len(set(map(str.casefold, said))) != 1 or len(set(score)) != 1:
        return None
    return {"correct": float(said[0].casefold() == "yes"), "score": float(score[0])}


def _suite(name: str, title: str) -> Suite:
    return Suite(
        name=name,
        title=title,
        source="mbzuai-oryx/Video-ChatGPT: quantitative_evaluation/evaluate_activitynet_qa.py",
        rule="share of replies that a judge calls right, and its mean score of 0 to 5",
        read=functools.partial(read, f"{title} (test_q.json and test_a.json, or the data set's own file, and its videos)"),
        mark=_mark,
        measures=table,
        judge=SuiteJudge(texts=(JUDGE, REMINDER), ask=_ask, read=_read, reminder=lambda question: REMINDER),
        max_new_tokens=64,
    )


MSVD = _suite("msvd-qa", "MSVD-QA")
MSRVTT = _suite("msrvtt-qa", "MSRVTT-QA")
TGIF = _suite("tgif-qa", "TGIF-QA (frame)")
