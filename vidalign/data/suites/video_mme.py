"""Video-MME (arXiv 2405.21075): four options, short, medium and long videos, with or without subtitles.

Rows: `videomme/test-*.parquet` as on the hub (one question a row), or the JSON of the project's page (one video a row). Source of
prompt and rule: BradyFU/Video-MME, README.md and evaluation/eval_your_results.py: the share of right answers, overall, by duration,
domain, sub-category and task type. Subtitles are those on screen at the sampled frames, as the README asks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import LETTERS, Row, Videos, find, rows_of
from vidalign.data.suites.replies import by_choice, lettered
from vidalign.data.suites.subtitles import on_frames, read_srt

FORM = "Video-MME (videomme/test-*.parquet from the hub, or the project's JSON)"
PATTERNS = ("videomme/*.parquet", "*.parquet", "*.json", "*.jsonl")
DURATIONS = ("short", "medium", "long")
ASK = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter (A, B, C, "
    "or D) of the correct option."
)
_YOUTUBE = re.compile(r"(?:v=|youtu\.be/|shorts/)([\w-]{11})")


def read(request: Request) -> list[SuiteQuestion]:
    """The questions, in file order."""
    videos = Videos(request.folder, ("data", "video", "videos", ""))
    rows = [row for path in find(request.folder, PATTERNS, FORM) for row in rows_of(path, FORM)]
    found = [question for row in rows for question in _questions(row, videos)]
    return [_with_subtitles(question, request) for question in found] if request.subtitles else found


def _questions(row: Row, videos: Videos) -> list[SuiteQuestion]:
    if not row.has("questions"):
        name = row.text("videoID")
        return [_question(row, videos.find(name, suffixes=(".mp4", ".MP4", ".mkv")), name, _keys(row))]
    address = _YOUTUBE.search(row.text("url"))
    if address is None:
        raise row.refuse("url", f"must name a video of YouTube, got {row.text('url')!r}")
    video = videos.find(address[1], suffixes=(".mp4", ".MP4", ".mkv"))
    return [_question(question, video, address[1], _keys(row)) for question in row.rows("questions")]


def _keys(row: Row) -> dict[str, str]:
    duration = "duration" if row.has("duration") else "duration_category"
    domain = next((name for name in ("domain", "video_category") if row.has(name)), "domain")
    sub_category = next((name for name in ("sub_category", "video_sub_category") if row.has(name)), "sub_category")
    return {
        "duration": row.one_of(duration, DURATIONS),
        "domain": row.text(domain),
        "sub-category": row.text(sub_category),
    }


def _question(row: Row, video: str, name: str, keys: dict[str, str]) -> SuiteQuestion:
    options = row.texts("options" if row.has("options") else "choices")
    with_letters = all(re.match(rf"{letter}[.):]", option) for letter, option in zip(LETTERS, options, strict=False))
    listed = "\n".join(options) if with_letters else lettered(options)
    return SuiteQuestion(
        id=row.text("question_id"),
        video=video,
        prompt=f"{ASK}\n{row.text('question')}\n{listed}\nThe best answer is:",
        answer=row.one_of("answer", tuple(LETTERS[: len(options)])),
        options=options,
        keys={**keys, "task type": row.text("task_type")},
        facts={"video": name},
        where=row.where,
    )


def _with_subtitles(question: SuiteQuestion, request: Request) -> SuiteQuestion:
    """As it is where the video has no subtitles: not all of them have."""
    import dataclasses

    path = request.folder / "subtitle" / f"{question.facts['video']}.srt"
    if not path.is_file():
        return question
    lines = "\n".join(on_frames(read_srt(path), question.video, request.frame_spec))
    return dataclasses.replace(question, prompt=f"This video's subtitles are listed below:\n{lines}\n{question.prompt}")


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """Overall, by duration from short to long, then by the other keys."""
    ordered = sorted(questions, key=lambda question: DURATIONS.index(question.keys["duration"]))
    return [
        measures.mean("overall"),
        *measures.breakdown(ordered, "duration"),
        *measures.breakdown(questions, "domain", "sub-category", "task type"),
    ]


SUITE = Suite(
    name="video-mme",
    title="Video-MME",
    source="BradyFU/Video-MME: README.md, evaluation/eval_your_results.py",
    rule="share of questions whose option is named",
    read=read,
    mark=by_choice,
    measures=table,
    subtitles=True,
)
