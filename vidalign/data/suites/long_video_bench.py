"""LongVideoBench (arXiv 2407.15754): questions on long videos, with their subtitles or without.

Rows: `lvb_val.json`, or `validation-*.parquet`, of the hub, `videos/` and `subtitles/`; the test split is published without answers.
Source of prompt and rule: longvideobench/LongVideoBench, longvideobench_dataset.py, and lmms-eval, tasks/longvideobench: the share of
right answers, overall and by length, level and category. Where no option is named, the authors draw one at random; here the reply is
wrong. Their loader puts frames and subtitles in turn; here the video is one part of the message, so the subtitles that are on screen
at the sampled frames come before the question, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import Row, Videos, find, letters_of, rows_of
from vidalign.data.suites.replies import by_choice, lettered
from vidalign.data.suites.subtitles import on_frames, read_json_lines

FORM = "LongVideoBench (lvb_val.json or validation-*.parquet, videos/ and subtitles/)"
ENDING = "Answer with the option's letter from the given choices directly."


def read(request: Request) -> list[SuiteQuestion]:
    """The questions of the validation split, in file order."""
    videos = Videos(request.folder, ("videos", ""))
    paths = find(request.folder, ("lvb_val.json", "validation-*.parquet"), FORM)
    return [_question(row, videos, request) for path in paths for row in rows_of(path, FORM)]


def _question(row: Row, videos: Videos, request: Request) -> SuiteQuestion:
    options = _options(row)
    right = row.whole("correct_choice")
    if not 0 <= right < len(options):
        raise row.refuse("correct_choice", f"must be the index of one of {len(options)} options, got {right}")
    video = videos.find(row.text("video_path"))
    said = _subtitles(row, video, request) if request.subtitles else []
    return SuiteQuestion(
        id=row.text("id"),
        video=video,
        prompt="\n".join((*said, f"Question: {row.text('question')}", lettered(options), ENDING)),
        answer=letters_of(options[right], options),
        options=options,
        keys={
            "seconds": row.word("duration_group"),
            "level": row.text("level") if row.has("level") else "",
            "category": row.text("question_category"),
            "topic": row.text("topic_category") if row.has("topic_category") else "",
        },
        where=row.where,
    )


def _options(row: Row) -> tuple[str, ...]:
    if row.has("candidates"):
        return row.texts("candidates")
    options = [row.text(f"option{index}") for index in range(5) if row.has(f"option{index}")]
    options = options[: options.index("N/A")] if "N/A" in options else options
    if len(options) < 2:
        raise row.refuse("candidates", "is missing, and so are option0 and option1")
    return tuple(options)


def _subtitles(row: Row, video: str, request: Request) -> list[str]:
    path = request.folder / "subtitles" / row.text("subtitle_path")
    if not path.is_file():
        raise row.refuse("subtitle_path", f"names no file: {path}")
    lines = read_json_lines(
        path, FORM, starts_at_s=row.seconds("starting_timestamp_for_subtitles"), duration_s=row.seconds("duration")
    )
    return on_frames(lines, video, request.frame_spec)


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """Overall, by length from short to long, then by the other keys."""
    by_length = sorted(questions, key=lambda question: float(question.keys["seconds"]))
    return [
        measures.mean("overall"),
        *measures.breakdown(by_length, "seconds"),
        *measures.breakdown(questions, "level", "category", "topic"),
    ]


SUITE = Suite(
    name="longvideobench",
    title="LongVideoBench",
    source="longvideobench/LongVideoBench: longvideobench/longvideobench_dataset.py; EvolvingLMMs-Lab/lmms-eval: "
    "lmms_eval/tasks/longvideobench/utils.py",
    rule="share of questions whose option is named",
    read=read,
    mark=by_choice,
    measures=table,
    subtitles=True,
    max_new_tokens=32,
)
