"""Recipe verified (VerIPO, arXiv 2505.19000): pairs from the replies of the group rounds just done, by what a verifier says of each.

    accurate     its trust, which is what the reward "accuracy" of the rounds that sampled it says, or else the rules
    consistent   a text model that reads the reasoning without its answer names the same answer
    repetition   share of its runs of four words that it has said before
    length       its tokens

    chosen       accurate, consistent, not repetitive and not over max_tokens: the longest
    rejected     kind "consistency": accurate, but its reasoning says another thing; kind "penalty": wrong or repetitive

One pair of each kind at most. Nothing is sampled. VerIPO's third kind, of replies that correct themselves, is left out: how such
replies are made is not published.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign import prompts
from vidalign.config.judging import JudgeConfig
from vidalign.config.verifying import VerifiedRecipe
from vidalign.data.final_answer import answering_part, reasoning_part
from vidalign.data.reading import DataRow
from vidalign.data.scorers import score
from vidalign.data.words import written_words
from vidalign.recipes.base import Evidence, Recipe
from vidalign.recipes.judging import Chat, JudgeTask
from vidalign.recipes.kinds import is_cut, spells_special_token
from vidalign.recipes.pairing import build_pair, side
from vidalign.records import Record
from vidalign.types import Example, Judgement, PreferencePair, Response

RIGHT = 0.5  # a trust from which on a reply is accurate
CONSISTENT, INCONSISTENT = 5.0, 1.0  # what a judgement of this verifier has as its score
RUN = 4  # words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """What the verifier says of one reply; None where it cannot tell. `reason`: why the reply is nothing to learn from, or ""."""

    example_id: str
    policy_version: str
    candidate: int
    accurate: bool | None
    consistent: bool | None
    repetition: float
    num_tokens: int
    reason: str = ""


class Verified(Recipe[VerifiedRecipe]):
    """Pairs of the last rounds' own replies, by a verifier."""

    Config = VerifiedRecipe
    asks_policy = False
    reuses_groups = True
    judges_answers = False

    @property
    def needs_tokens(self) -> bool:
        return True

    def judge_rows(self, examples: Sequence[Example], responses: Sequence[Response]) -> JudgeTask | None:
        """The reasoning of every accurate reply, without its answer. A reply without any has nothing to contradict."""
        by_id = {example.id: example for example in examples}
        rows: dict[str, None] = {}
        for response in _answers(responses):
            reasoning, stated = parts(response.text)
            if response.trust >= RIGHT and reasoning and stated and not _why_not(response):
                row: dict[str, Any] = {"example": by_id[response.example_id].to_row(), "response": response.text.strip()}
                row |= {"prompt": self.config.consistency_prompt, "compare": self.config.compare}
                rows[json.dumps(row, ensure_ascii=False)] = None
        if not rows:
            return None
        return JudgeTask(
            rows=list(rows), work=consistency, asked_with={"consistency_prompt": self.config.consistency_prompt}
        )

    def verdict(self, response: Response, evidence: Evidence) -> Verdict:
        """What is said of one reply."""
        reasoning, _ = parts(response.text)
        found = evidence.judgements.get(response.text.strip())
        consistent = True if not reasoning else None if found is None else found.score == CONSISTENT
        return Verdict(
            example_id=response.example_id,
            policy_version=response.policy_version,
            candidate=response.candidate,
            accurate=None if math.isnan(response.trust) else response.trust >= RIGHT,
            consistent=consistent,
            repetition=repetition(response.text),
            num_tokens=len(response.token_ids),
            reason=_why_not(response),
        )

    def verdicts(self, responses: Sequence[Response], judgements: Mapping[str, Mapping[str, Judgement]]) -> list[Verdict]:
        return [
            self.verdict(response, Evidence(judgements=judgements.get(response.example_id, {})))
            for response in _answers(responses)
        ]

    def counted(self, verdicts: Sequence[Verdict]) -> dict[str, int]:
        return counts(verdicts, self.config.max_repetition)

    def pairs(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> list[PreferencePair] | str:
        """The pairs of an example, or why there is none: missing, cut_by_length, empty_response, no_verified, all_verified."""
        config = self.config
        told = [(r, self.verdict(r, evidence)) for r in _answers(responses)]
        usable = [(r, v) for r, v in told if not v.reason]
        if not usable:
            return told[0][1].reason if told else "missing"
        good = [
            (r, v)
            for r, v in usable
            if v.accurate and v.consistent and not self._repeats(v) and v.num_tokens <= (config.max_tokens or math.inf)
        ]
        if not good:
            return "no_verified"
        chosen = max(good, key=lambda each: (each[1].num_tokens, each[0].reward, -each[0].candidate))[0]
        kinds = {
            "consistency": [r for r, v in usable if v.accurate and v.consistent is False],
            "penalty": [r for r, v in usable if v.accurate is False or (v.accurate and self._repeats(v))],
        }
        made = []
        for kind, candidates in kinds.items():
            if kind in config.kinds and candidates:
                rejected = max(candidates, key=lambda r: (r.reward, -r.candidate))  # the error that the policy would make
                made.append(build_pair(row.example, side(chosen), side(rejected), recipe=config.name, rule=kind))
        return made or "all_verified"

    def _repeats(self, verdict: Verdict) -> bool:
        return verdict.repetition >= self.config.max_repetition

    def describe(self) -> str:
        config = self.config
        return f"{config.name}: pairs of the last groups ({', '.join(config.kinds)}), judge {config.judge.model or config.judge.kind}"


def _answers(responses: Sequence[Response]) -> list[Response]:
    return [response for response in responses if response.kind == "plain"]


def _why_not(response: Response) -> str:
    if is_cut(response):
        return "cut_by_length"
    return "special_token" if spells_special_token(response) else "" if response.text.strip() else "empty_response"


def parts(text: str) -> tuple[str, str]:
    """(the reasoning of a reply, the answer that it states); reasoning is "" where there is none."""
    answer, unfinished = answering_part(text)
    return reasoning_part(text), "" if unfinished else answer.strip()


def _its_end(reasoning: str, limit: int) -> str:
    """The end of a reasoning that is too long, which says what it leads to."""
    return reasoning if len(reasoning) <= limit else f"[…] {reasoning[-limit:]}"


def repetition(text: str) -> float:
    """The share in [0, 1) of a text's runs of four words that occurred in it before."""
    words = written_words(text)
    runs = [tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def consistency(rows: Sequence[dict[str, Any]], config: JudgeConfig, chat: Chat, name: str) -> list[dict[str, Any]]:
    """Ask which answer each reasoning leads to, and compare it with the one that the reply states.

    Returns:
        For each row a `Judgement` row, whose score is 5 where the two agree and 1 where they do not; or {example_id, response, judge,
        reason: unparsable_judgement, message} where no rule can tell whether they do.
    """
    asked = []
    for row in rows:
        reasoning, _ = parts(row["response"])
        question = prompts.asked_question(Example.from_row(row["example"]))
        text = prompts.substitute(row["prompt"], question=question, reasoning=_its_end(reasoning, config.max_response_chars))
        asked.append([{"role": "user", "content": text}])
    made = []
    for row, reply in zip(rows, chat(asked) if asked else [], strict=True):
        example, stated = Example.from_row(row["example"]), parts(row["response"])[1]
        implied = parts(reply)[1]
        same = score(stated, dataclasses.replace(example, answer=implied), row["compare"]).value if implied else None
        told = {"example_id": example.id, "response": row["response"], "judge": name}
        if same is None:
            made.append({**told, "reason": "unparsable_judgement", "message": reply})
        else:
            agrees = CONSISTENT if same >= RIGHT else INCONSISTENT
            made.append(Judgement(**told, score=agrees, explanation=f"the reasoning says: {implied}").to_row())
    return made


def counts(verdicts: Sequence[Verdict], max_repetition: float) -> dict[str, int]:
    """How many replies are what."""
    found = collections.Counter(
        {"replies": len(verdicts), "accurate": 0, "wrong": 0, "inconsistent": 0, "repetitive": 0, "unusable": 0}
    )
    for each in verdicts:
        found["accurate"] += each.accurate is True
        found["wrong"] += each.accurate is False
        found["inconsistent"] += each.consistent is False
        found["repetitive"] += each.repetition >= max_repetition
        found["unusable"] += bool(each.reason)
    return dict(found)
