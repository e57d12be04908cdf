"""ReAgent-V's data (arXiv 2506.01300): an answer, a critic's report on it, three reflections, and which of the four is best and worst.

    plain         question alone                                  ─► num_candidates answers
    report        question and answer, greedy                     ─► five numbers, whose sum is the answer's reward (`critic`)
    conservative, neutral, aggressive   question, answer, report  ─► three further answers to each, with reports of their own
    pair          chosen = highest reward, rejected = lowest, at least min_reward_gap apart; the likelier answer wins a tie

The critic is the policy, or `judge` for the reports that decide. What has no report that can be read is in no pair and is counted.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vidalign import prompts
from vidalign.config.reflecting import ReagentRecipe
from vidalign.data.reading import DataRow
from vidalign.recipes import critic
from vidalign.recipes.base import Asked, Evidence, Recipe
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.judging import SHOWN, JudgeTask
from vidalign.recipes.kinds import is_cut, spells_special_token
from vidalign.recipes.pairing import build_pair, side
from vidalign.recipes.sampling import Chunk
from vidalign.records import Record
from vidalign.types import Example, Judgement, PreferencePair, Response
from vidalign.video.scene import Shown

REFLECTIONS = ("conservative", "neutral", "aggressive")
ANSWERS = ("plain", *REFLECTIONS)  # by turn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """The critic's reward of one answer, in [0, 1]; None where its report cannot be read."""

    example_id: str
    kind: str
    candidate: int
    reward: float | None
    report: str


class Reagent(Recipe[ReagentRecipe]):
    """The policy's best answer against its worst after reflection, by a critic's report on each."""

    Config = ReagentRecipe
    judges_answers = False

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        """Sample answers, reports and reflections; answers are scored, reports are not."""
        chunk, config = Chunk(engine, examples, clips, policy_version, seed, self.config.trust), self.config
        row_of = {example.id: row for row, example in enumerate(examples)}

        def request(row: int, kind: str, candidate: int, prompt: str) -> Request:
            is_report = kind.startswith("report")
            return Request(
                prompt=prompt,
                clip=clips[row],
                seed=chunk.request_seed(row, kind, candidate),
                temperature=0.0 if is_report else config.temperature,
                top_p=1.0 if is_report else config.top_p,
                max_new_tokens=config.report_tokens if is_report else config.max_new_tokens,
            )

        def plain(row: int, candidate: int) -> Request:
            prompt = prompts.fill(config.plain_prompt, question=examples[row].question)
            return request(row, "plain", candidate, prompt)

        def reports(answers: Sequence[Response]) -> list[Response]:
            made = []
            for turn, kind in enumerate(ANSWERS):
                asked = []
                for answer in answers:
                    if answer.kind == kind and _is_whole(answer):
                        row = row_of[answer.example_id]
                        filled = prompts.fill(
                            config.report_prompt, question=examples[row].question, previous=answer.text.strip()
                        )
                        of = request(row, f"report {kind}", answer.candidate, filled)
                        asked.append((row, answer.candidate, of))
                made += chunk.ask("report", asked, turn)
            return made

        first = chunk.sample("plain", config.num_candidates, plain)
        made = reports(first)
        said = {(report.example_id, report.candidate): critic.parse_report(report.text) for report in made}
        reflected = []
        for turn, kind in enumerate(REFLECTIONS, 1):
            asked = []
            for answer in filter(_is_whole, first):
                row = row_of[answer.example_id]
                filled = prompts.fill(
                    getattr(config, f"{kind}_prompt"),
                    question=examples[row].question,
                    previous=answer.text.strip(),
                    report=critic.in_words(said[answer.example_id, answer.candidate]),
                )
                asked.append((row, answer.candidate, request(row, kind, answer.candidate, filled)))
            reflected += chunk.ask(kind, asked, turn)
        if config.judge is None:
            made += reports(reflected)
        return [*chunk.score([*first, *reflected], config.plain_prompt), *made]

    def judge_rows(self, examples: Sequence[Example], responses: Sequence[Response]) -> JudgeTask | None:
        """Every distinct answer that could be in a pair, for a critic other than the policy."""
        if self.config.judge is None:
            return None
        by_id = {example.id: example for example in examples}
        rows: dict[str, None] = {}
        for answer in filter(_is_whole, _answers(responses)):
            example = by_id[answer.example_id]
            row: dict[str, Any] = {"example_id": example.id, "response": answer.text.strip()}
            row |= {"question": prompts.conversation(example), "prompt": self.config.report_prompt}
            row |= {kind: list(getattr(example.context, kind)) for kind in SHOWN}
            rows[json.dumps(row, ensure_ascii=False)] = None
        if not rows:
            return None
        return JudgeTask(rows=list(rows), work=critic.report_rows, asked_with={"report_prompt": self.config.report_prompt})

    def rewards(
        self, responses: Sequence[Response], judgements: Mapping[str, Judgement]
    ) -> list[tuple[Response, float | None, str]]:
        """(answer, its reward or None, what was said of it) of one example. Equal texts of a judge have one report."""
        reports = {(r.candidate, r.turn): r.text for r in responses if r.kind == "report"}
        found: list[tuple[Response, float | None, str]] = []
        for answer in filter(_is_whole, _answers(responses)):
            if self.config.judge is None:
                text = reports.get((answer.candidate, answer.turn), "")
                parsed = critic.parse_report(text)
                found.append((answer, critic.reward(parsed), critic.in_words(parsed) if parsed else text.strip()))
            elif (judged := judgements.get(answer.text.strip())) is None:
                found.append((answer, None, ""))
            else:
                found.append((answer, judged.score / (critic.MOST * len(critic.PARTS)), judged.explanation))
        return found

    def verdicts(self, responses: Sequence[Response], judgements: Mapping[str, Mapping[str, Judgement]]) -> list[Verdict]:
        """What the critic says of each answer."""
        by_example: dict[str, list[Response]] = collections.defaultdict(list)
        for response in responses:
            by_example[response.example_id].append(response)
        return [
            Verdict(example_id=id_, kind=answer.kind, candidate=answer.candidate, reward=reward, report=said)
            for id_, made in by_example.items()
            for answer, reward, said in self.rewards(made, judgements.get(id_, {}))
        ]

    def counted(self, verdicts: Sequence[Verdict]) -> dict[str, int]:
        """How many answers there are, and how many of them have no report that can be read."""
        return {"answers": len(verdicts), critic.UNREADABLE: sum(verdict.reward is None for verdict in verdicts)}

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair | str:
        """One pair, or why there is none: missing, cut_by_length, unparsable_report, no_reward_gap."""
        if not _answers(responses):
            return "missing"
        told = self.rewards(responses, evidence.judgements)
        if not told:
            return "cut_by_length"
        scored = [(answer, reward, said) for answer, reward, said in told if reward is not None]
        if len(scored) < 2:
            return critic.UNREADABLE
        chosen, high, praise = max(scored, key=lambda each: (each[1], each[0].reward, -each[0].turn))
        rejected, low, blame = min(scored, key=lambda each: (each[1], -each[0].reward, each[0].turn))
        if round(high - low, 9) < self.config.min_reward_gap or chosen.text.strip() == rejected.text.strip():
            return "no_reward_gap"
        sides = [
            side(chosen, critic_reward=high, report=praise),
            side(rejected, critic_reward=low, report=blame),
        ]
        return build_pair(row.example, *sides, recipe=self.config.name, rule="best_vs_worst_report")

    def asked(self, rows: Sequence[DataRow]) -> list[Asked]:
        """Adds report and reflection prompts, which quote an answer of up to `max_new_tokens` tokens."""
        plain, config, length = super().asked(rows), self.config, self.config.max_new_tokens
        examples = plain[0].examples
        report = Asked(
            kind="report", examples=examples, template=config.report_prompt, quoted=length, reply=config.report_tokens
        )
        reflections = [
            Asked(
                kind=kind,
                examples=examples,
                template=getattr(config, f"{kind}_prompt"),
                quoted=length + critic.WORDS_TOKENS,
                reply=length,
            )
            for kind in REFLECTIONS
        ]
        return [*plain, report, *reflections]

    def describe(self) -> str:
        config = self.config
        by = "the policy" if config.judge is None else config.judge.model or config.judge.kind
        return f"{config.name}: {config.num_candidates} answers, each reflected on three times, critic {by}"


def _answers(responses: Sequence[Response]) -> list[Response]:
    return [response for response in responses if response.kind in ANSWERS]


def _is_whole(answer: Response) -> bool:
    """Whether an answer can be judged and learned from."""
    return bool(answer.text.strip()) and not is_cut(answer) and not spells_special_token(answer)
