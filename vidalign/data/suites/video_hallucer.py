"""VideoHallucer (arXiv 2406.16338): pairs of a basic question and a hallucinated one, both of which must be answered rightly.

Rows: `<setting>/<setting>.json`, a list of {"basic": {"video", "question", "answer"}, "hallucination": {the same}, "type"}, and
`<setting>/videos/`. Source of prompt and rule: patrick-tssn/VideoHallucer, evaluations/evaluation.py and evaluation_utils.py: a reply
is right that has the answer's word (yes or no) anywhere, and a pair where both replies are right; the overall numbers are means over
the settings. That rule is kept as it is, a reply with both words included, so that numbers can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vidalign.data.suites import measures
from vidalign.data.suites.base import Request, Suite, Values
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import Row, Videos, find, rows_of

FORM = "VideoHallucer (<setting>/<setting>.json and <setting>/videos/)"
SETTINGS = (
    "object_relation",
    "temporal",
    "semantic_detail",
    "interaction",
    "external_factual",
    "external_nonfactual",
    "fact_detect",
)
OVERALL = ("object_relation", "temporal", "semantic_detail", "external_factual", "external_nonfactual")  # of the leaderboard
ENDING = "\nAnswer the question using 'yes' or 'no'."
SIDES = ("basic", "hallucination")


def read(request: Request) -> list[SuiteQuestion]:
    """Both questions of every pair, of every setting whose file is there; a setting that was asked for must be."""
    found: list[SuiteQuestion] = []
    for setting in SETTINGS:
        pattern = f"{setting}/{setting}.json"
        if request.wants(setting) and ((request.folder / pattern).is_file() or setting in request.tasks):
            videos = Videos(request.folder, (f"{setting}/videos", f"{setting}/video"))
            for number, row in enumerate(rows_of(find(request.folder, (pattern,), FORM)[0], FORM)):
                found += [_question(row, setting, number, side, videos) for side in SIDES]
    if not found:
        find(request.folder, [f"{setting}/{setting}.json" for setting in SETTINGS], FORM)
    return found


def _question(row: Row, setting: str, number: int, side: str, videos: Videos) -> SuiteQuestion:
    own = row.row(side)
    if own.text("answer").casefold() not in ("yes", "no"):
        raise own.refuse("answer", f"must be yes or no, got {own.text('answer')!r}")
    return SuiteQuestion(
        id=f"{setting}-{number:04d}-{side}",
        video=videos.find(own.text("video")),
        prompt=own.text("question") + ENDING,
        answer=own.text("answer"),
        task=setting,
        keys={"side": side},
        group=f"{setting}-{number:04d}",
        where=own.where,
    )


def mark(question: SuiteQuestion, reply: str) -> Values | None:
    """Right where the answer's word is in the reply; None where neither yes nor no is."""
    if not re.search(r"\b(?:yes|no)\b", reply, re.IGNORECASE):
        return None
    return {"correct": float(re.search(rf"\b({re.escape(question.answer)})\b", reply, re.IGNORECASE) is not None)}


def table(questions: Sequence[SuiteQuestion]) -> list[measures.Measure]:
    """Means over the settings, then each setting: pairs, and each side alone."""
    settings = list(dict.fromkeys(question.task for question in questions))
    counted = [setting for setting in settings if setting in OVERALL] or settings
    found = [
        measures.mean_together(
            "overall: pairs", lambda question: question.task if question.task in counted else "", questions
        )
    ]
    for side in SIDES:
        found.append(measures.mean_of_means(f"overall: {side}", _setting_of(side, counted), questions))
    for setting in settings:
        found.append(measures.together(f"{setting}: pairs", questions, where=_in(setting)))
        found += [measures.mean(f"{setting}: {side}", where=_in(setting, side)) for side in SIDES]
    return found


def _in(setting: str, side: str = "") -> measures.Where:
    return lambda question: question.task == setting and side in ("", question.keys["side"])


def _setting_of(side: str, counted: Sequence[str]) -> measures.Kind:
    return lambda question: question.task if question.keys["side"] == side and question.task in counted else ""


SUITE = Suite(
    name="videohallucer",
    title="VideoHallucer",
    source="patrick-tssn/VideoHallucer: evaluations/evaluation.py, evaluations/evaluation_utils.py",
    rule="share of pairs whose basic and hallucinated questions are both answered rightly",
    read=read,
    mark=mark,
    measures=table,
    tasks=SETTINGS,
)
