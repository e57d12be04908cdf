"""What a critic is asked and how its report is read: five numbers from 0 to 5, of an answer to a question about a video.

Source: ReAgent-V, arXiv 2506.01300 (the wording is ours). The reward is the five together over 25. A report without one clear number
for each of the five gives no reward: nothing is guessed, and no reply that cannot be read counts as 0.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.data.final_answer import without_reasoning
from vidalign.recipes.judging import SHOWN, Chat, Messages, shortened
from vidalign.types import Judgement

PARTS = (
    "visual_alignment",
    "temporal_accuracy",
    "option_disambiguation",
    "reasoning_specificity",
    "linguistic_precision",
)
MOST = 5.0  # of each part
UNREADABLE = "unparsable_report"
NONE_SAID = "nothing that can be read"
WORDS_TOKENS = 96  # that `in_words` takes at most, in any tokenizer that knows some English
REMINDER = (
    "Your reply did not give one number from 0 to 5 on a line of its own for each of visual alignment, temporal accuracy, option "
    "disambiguation, reasoning specificity and linguistic precision. Write these five lines now, and nothing else."
)

_NUMBER = re.compile(r"[\s*_\[({\"'`$]*([0-5](?:\.\d+)?)[\s*_\])}\"'`$|]*(?:(?:/|out of)\s*5)?[\s*_\])}\"'`$|.,;]*")


def _patterns(part: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    words = part.replace("_", r"[\s_-]+")
    member = rf"[\"']{words}[\"']\s*:\s*(?P<value>\"[^\"]*\"|'[^']*'|[^,}}\n]*)"
    line = rf"^[^\w\n]*(?:\d[.)]\s*)?[^\w\n]*{words}[^\w\n]*?(?:[:=]|\s[-–]\s|\sis\b:?)(?P<value>[^\n]*\d[^\n]*)$"
    return re.compile(member, re.IGNORECASE), re.compile(line, re.IGNORECASE | re.MULTILINE)


_PATTERNS = {part: _patterns(part) for part in PARTS}


def parse_report(reply: str) -> dict[str, float] | None:
    """The five numbers in [0, 5] that a report states; None if one is missing, unreadable, or stated twice with two values.

    A number stands on a line with its name ("Visual alignment: 4", "1. **Temporal accuracy** = 3/5") or is a member of a JSON object.
    What stands in a reasoning block does not count, and neither does a form that was only repeated ("Visual alignment: N").
    """
    text, unfinished = without_reasoning(unicodedata.normalize("NFKC", reply))
    found: dict[str, float] = {}
    for part, (member, line) in _PATTERNS.items():
        stated = [match["value"] for match in member.finditer(text)]
        stated += [match["value"] for match in line.finditer(member.sub(" ", text))]
        read = {_read(value) for value in stated if re.search(r"\d", value)}
        score = read.pop() if len(read) == 1 else None
        if unfinished or score is None or score > MOST:
            return None
        found[part] = score
    return found


def _read(value: str) -> float | None:
    match = _NUMBER.fullmatch(value.strip())
    return float(match[1]) if match else None


def reward(report: Mapping[str, float] | None) -> float | None:
    """The parts of a report together, in [0, 1]; None where there is no report."""
    return None if report is None else sum(report[part] for part in PARTS) / (MOST * len(PARTS))


def in_words(report: Mapping[str, float] | None) -> str:
    """A report as a prompt quotes it."""
    if report is None:
        return NONE_SAID
    return ", ".join(f"{part.replace('_', ' ')} {report[part]:g} of {MOST:g}" for part in PARTS)


def report_rows(rows: Sequence[dict[str, Any]], config: JudgeConfig, chat: Chat, name: str) -> list[dict[str, Any]]:
    """Ask a judge for reports, once more where one cannot be read.

    Returns:
        For each row a `Judgement` row, whose score is the sum of the five, or {example_id, response, judge, reason:
        unparsable_report, message: both replies}.
    """
    asked: list[Messages] = []
    for row in rows:
        answer = shortened(row["response"], config.max_response_chars)
        text = prompts.substitute(row["prompt"], question=row["question"], previous=answer)
        asked.append([{"role": "user", "content": text, **{kind: row[kind] for kind in SHOWN}}])
    replies = chat(asked) if asked else []
    reports = [parse_report(reply) for reply in replies]
    unclear = [at for at, report in enumerate(reports) if report is None]
    if unclear:
        again = [
            [*asked[at], {"role": "assistant", "content": replies[at]}, {"role": "user", "content": REMINDER}]
            for at in unclear
        ]
        for at, reply in zip(unclear, chat(again), strict=True):
            reports[at] = parse_report(reply)
            replies[at] += "\n" + reply
    made = []
    for row, reply, report in zip(rows, replies, reports, strict=True):
        told = {"example_id": row["example_id"], "response": row["response"], "judge": name}
        if report is None:
            made.append({**told, "reason": UNREADABLE, "message": reply})
        else:
            made.append(Judgement(**told, score=sum(report.values()), explanation=in_words(report)).to_row())
    return made
