"""What a judge is asked and how its reply is read: a model scores a response 1-5, by the video or by a caption in its place.

Source: LLaVA-Hound-DPO, arXiv 2404.01258 (the wording is ours). A reply without one clear score gives no score; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.data.answers import verdict
from vidalign.data.final_answer import from_answer_on, without_reasoning
from vidalign.types import Example, Judgement, Response, stable_hash

Messages: TypeAlias = list[dict[str, Any]]  # for a judge that sees, the first has the names of "videos" and "images"
Chat: TypeAlias = Callable[[Sequence[Messages]], list[str]]  # conversations ─► the next reply to each, greedy


class Work(Protocol):
    """What a judge does with a batch of rows; `name` identifies the judge."""

    def __call__(
        self, rows: Sequence[dict[str, Any]], config: JudgeConfig, chat: Chat, name: str
    ) -> list[dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeTask:
    """What a recipe asks of its judge.

    rows: distinct JSON texts, one per row. work: what is done with them. asked_with: templates in addition to the judge's own, by
    option name. quarantined: how many responses cannot be judged, by reason.
    """

    rows: Sequence[str]
    work: Work
    asked_with: Mapping[str, str] = dataclasses.field(default_factory=dict)
    quarantined: Mapping[str, int] = dataclasses.field(default_factory=dict)


SHOWN = ("videos", "images")
REMINDER = (
    'Your reply had no line of the form "Score: N" with one number from 1 to 5. Write that line now, and nothing else.'
)

_KEY = r"(?:(?:the|my|final|overall|total)[\s_]+)*score"
_LINE = re.compile(
    rf"^[^\w\n]*{_KEY}(?:\s*[(\[](?:1\s*(?:-|–|to)\s*5|out of 5)[)\]])?[^\w\n]*?(?:[:=]|\s-\s|\sis\b:?)(?P<value>[^\n]*\d[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_MEMBER = re.compile(rf"[\"']{_KEY}[\"']\s*:\s*(?P<value>\"[^\"]*\"|'[^']*'|[^,}}\n]*)", re.IGNORECASE)  # of a JSON object
_TAG = re.compile(r"<(?:final_)?score>(?P<value>[^<]*)</(?:final_)?score>", re.IGNORECASE)
_NUMBER = re.compile(r"[\s*_\[({\"'`$]*([1-5](?:\.\d+)?)[\s*_\])}\"'`$|]*(?:(?:/|out of)\s*5)?[\s*_\])}\"'`$|.,;!]*")


def judge_prompt(template: str, *, caption: str, question: str, answer: str, response: str, max_response_chars: int) -> str:
    """Fill the template by plain replacement, so that braces in a text are left alone. A response that is too long is cut off."""
    response = shortened(response, max_response_chars)
    return prompts.substitute(template, caption=caption, question=question, answer=answer, response=response)


def shortened(text: str, limit: int) -> str:
    """A text as a judge is shown it: one of more than `limit` characters is cut, and a mark says so. Of a reasoning its end is cut
    and what follows it is kept, for there is the answer.
    """
    if len(text) <= limit:
        return text
    answer = from_answer_on(text)
    if answer and len(answer) <= limit:
        return f"{text[: limit - len(answer)]} […] {answer}"
    return (answer or text)[:limit] + " […]"


def parse_score(reply: str) -> float | None:
    """The score in [1, 5] that a reply states; None if it states no score, an unreadable one, or several that disagree.

    A score is stated on a line of its own ("Score: 4", "**Final score:** 4/5", "Score: [4]"), as a member of a JSON object
    ({"score": 4}), or in a tag. What stands in the judge's reasoning block does not count, and neither does a form that was only
    repeated ("Score: N").
    """
    text, unfinished = without_reasoning(unicodedata.normalize("NFKC", reply))
    stated: list[str] = []
    for pattern in (_MEMBER, _TAG, _LINE):
        stated += [match["value"] for match in pattern.finditer(text)]
        text = pattern.sub(" ", text)
    if unfinished:
        return None
    read = {_read(value) for value in stated if re.search(r"\d", value)}
    score = read.pop() if len(read) == 1 else None
    return score if score is not None and score <= 5 else None


def _read(value: str) -> float | None:
    match = _NUMBER.fullmatch(value.strip())
    return float(match[1]) if match else None


def explanation(reply: str) -> str:
    """The reply without its score lines."""
    return _LINE.sub("", reply).strip()


def prompt_version(template: str) -> str:
    """Eight hex digits that identify a template, stored with every score: a different wording is a different judge."""
    return stable_hash([template, REMINDER], 8)


def judge_rows(rows: Sequence[dict[str, Any]], config: JudgeConfig, chat: Chat, name: str) -> list[dict[str, Any]]:
    """Ask the judge for scores, once more if a reply has no clear one.

    Returns:
        For each row a `Judgement` row, or {example_id, response, judge, reason: unparsable_judgement, message: both replies}.
    """
    asked: list[Messages] = [
        [
            {
                "role": "user",
                "content": judge_prompt(
                    config.prompt,
                    caption=row["caption"],
                    question=row["question"],
                    answer=row["answer"],
                    response=row["response"],
                    max_response_chars=config.max_response_chars,
                ),
                **{name: row[name] for name in SHOWN if name in row},
            }
        ]
        for row in rows
    ]
    replies = chat(asked) if asked else []
    scores = [parse_score(reply) for reply in replies]
    unclear = [index for index, score in enumerate(scores) if score is None]
    if unclear:
        again = [
            [
                *asked[index],
                {"role": "assistant", "content": replies[index]},
                {"role": "user", "content": REMINDER},
            ]
            for index in unclear
        ]
        for index, reply in zip(unclear, chat(again), strict=True):
            scores[index] = parse_score(reply)
            replies[index] += "\n" + reply
    return [
        Judgement(
            example_id=row["example_id"],
            response=row["response"],
            score=score,
            explanation=explanation(reply),
            judge=name,
        ).to_row()
        if score is not None
        else {
            "example_id": row["example_id"],
            "response": row["response"],
            "judge": name,
            "reason": "unparsable_judgement",
            "message": reply,
        }
        for row, reply, score in zip(rows, replies, scores, strict=True)
    ]


def scoring_task(
    examples: Sequence[Example], responses: Sequence[Response], kinds: Collection[str], config: JudgeConfig
) -> JudgeTask:
    """The task of scoring every distinct response of these kinds with `judge_rows`, in the order of the responses.

    The caption is the policy's if it wrote one, else the row's, else the ground truth. A response to a video that the policy could
    not caption is quarantined as "empty_caption", unless the judge reads no caption.
    """
    by_id = {example.id: example for example in examples}
    captions = {r.example_id: r.text.strip() for r in responses if r.kind == "caption"}
    rows: dict[str, None] = {}
    uncaptioned: set[tuple[str, str]] = set()
    for response in responses:
        text = response.text.strip()
        if response.kind not in kinds or not text:
            continue
        example = by_id[response.example_id]
        caption = captions.get(example.id, example.caption or example.answer)
        if not caption and config.reads_caption:
            uncaptioned.add((example.id, text))
            continue
        rows[judged_row(example, text, caption, config)] = None
    quarantined = {"empty_caption": len(uncaptioned)} if uncaptioned else {}
    return JudgeTask(rows=list(rows), work=judge_rows, quarantined=quarantined)


def judged_row(example: Example, response: str, caption: str, config: JudgeConfig) -> str:
    """One row of a scoring task as JSON; with the names of the videos and images where the judge sees them."""
    row = {
        "example_id": example.id,
        "question": prompts.conversation(example),
        "answer": example.answer,
        "response": response,
        "caption": caption,
    }
    shown = {name: list(getattr(example.context, name)) for name in SHOWN} if config.sees_video else {}
    return json.dumps({**row, **shown}, ensure_ascii=False)


def trust_of(score: float) -> float:
    """A judge's score of 1-5 as trust in [0, 1]."""
    return (score - 1) / 4


def agreement(
    judged: Sequence[Judgement], examples: Sequence[Example], accepts: Callable[[float], bool]
) -> dict[str, float] | None:
    """How the judge's verdicts compare with the rules', as shares of the judged responses that rules can judge; None without any.

    accepted_right, accepted_wrong, rejected_right, rejected_wrong: accepted by the judge's score or not, and right or wrong by
    `vidalign.data.answers.verdict`; agreement is the sum of the first and the last. compared: how many responses that is.
    """
    by_id = {example.id: example for example in examples}
    counts = {"accepted_right": 0, "accepted_wrong": 0, "rejected_right": 0, "rejected_wrong": 0}
    for judgement in judged:
        right = verdict(judgement.response, by_id[judgement.example_id])
        if right is not None:
            accepted = "accepted" if accepts(judgement.score) else "rejected"
            counts[f"{accepted}_{'right' if right else 'wrong'}"] += 1
    compared = sum(counts.values())
    if not compared:
        return None
    shares = {name: count / compared for name, count in counts.items()}
    return {"agreement": shares["accepted_right"] + shares["rejected_wrong"], **shares, "compared": compared}
