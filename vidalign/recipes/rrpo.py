"""RRPO's data recipe (arXiv 2504.12083): the policy's own errors on a perturbed video, against the ground truth.

    perturbed    question alone, perturbed video                        ─► n responses
    score        question alone, clean video                            ─► reward and trust; the likeliest wrong response is kept
    differences  question, truth and wrong response (rewrite: policy)   ─► "right phrase => wrong phrase", one per line
    rewritten    truth with only those phrases swapped in               ─► the rejected response, parallel to the truth
    score        truth and rewrite                                      ─► rewards
    pair         chosen = the ground truth; rejected = the wrong response that the policy finds likeliest, or its rewrite

The steps from "differences" on are greedy. A rewrite that differs in phrases other than the listed ones gives no pair.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidalign import prompts
from vidalign.config.recipes import RrpoRecipe
from vidalign.data.answers import AGREES
from vidalign.data.reading import DataRow
from vidalign.recipes.base import Asked, Evidence, Recipe, responses_by_example, scores_by_example
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.judging import JudgeTask, scoring_task
from vidalign.recipes.kinds import is_cut, spells_special_token
from vidalign.recipes.pairing import Side, build_pair, side
from vidalign.recipes.phrases import differing_marks, differs_only_in, parse_differences
from vidalign.recipes.rewriting import rewrite_rows
from vidalign.recipes.sampling import Chunk, unsampled
from vidalign.types import Example, Judgement, PreferencePair, Response
from vidalign.video.clip import Clip
from vidalign.video.perturb import perturb


class Rrpo(Recipe[RrpoRecipe]):
    """Wrong responses to a perturbed video against the ground truth, if configured rewritten to be parallel to it."""

    Config = RrpoRecipe

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Clip], *, policy_version: str, seed: int
    ) -> list[Response]:
        """Sample and score the responses to these examples, with the ground truths and the policy's rewrites."""
        chunk = Chunk(engine, examples, clips, policy_version, seed)

        def on_perturbed(row: int, candidate: int) -> Request:
            draw = chunk.request_seed(row, "perturbed", candidate)
            return Request(
                prompt=prompts.fill(self.config.plain_prompt, question=examples[row].question),
                clip=perturb(clips[row], self.config.perturb, np.random.default_rng(draw)),
                seed=draw,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                max_new_tokens=self.config.max_new_tokens,
            )

        replies = chunk.sample("perturbed", self.config.num_candidates, on_perturbed)
        replies = chunk.score(replies, self.config.plain_prompt)
        truths = [unsampled(e.id, "truth", e.answer, policy_version=policy_version) for e in examples]
        rewrites = self._rewrites(chunk, replies) if self.config.rewrite == "policy" else []
        rewritten = [r for r in rewrites if r.kind == "rewritten"]
        scored = chunk.score([*truths, *rewritten], self.config.plain_prompt)
        return [*replies, *scored, *(r for r in rewrites if r.kind != "rewritten")]

    def _rewrites(self, chunk: Chunk, replies: Sequence[Response]) -> list[Response]:
        by_example = responses_by_example(replies)
        wrong = [
            (row, found)
            for row, example in enumerate(chunk.examples)
            if (found := self.likeliest_wrong(by_example.get(example.id, []))) is not None
        ]
        listed = self._ask(chunk, wrong, "differences")
        usable = [(row, r) for (row, _), r in zip(wrong, listed, strict=True) if parse_differences(r.text)]
        return [*listed, *self._ask(chunk, usable, "rewritten")]

    def _ask(self, chunk: Chunk, about: Sequence[tuple[int, Response]], kind: str) -> list[Response]:
        """One greedy reply about each (row, earlier response), which the prompt quotes."""
        template = self.config.differences_prompt if kind == "differences" else self.config.rewrite_prompt
        asked = []
        for row, earlier in about:
            example, quoted = chunk.examples[row], earlier.text.strip()
            request = Request(
                prompt=prompts.fill(template, question=example.question, answer=example.answer, previous=quoted),
                clip=chunk.clips[row],
                seed=chunk.request_seed(row, kind, earlier.candidate),
                temperature=0.0,
                top_p=1.0,
                max_new_tokens=self.config.max_new_tokens,
            )
            asked.append((row, earlier.candidate, request))
        return chunk.ask(kind, asked)

    def judge_rows(self, examples: Sequence[Example], responses: Sequence[Response]) -> JudgeTask | None:
        return scoring_task(examples, responses, "perturbed") if self.config.wrong_by == "judge" else None

    def rewrite(
        self, examples: Sequence[Example], responses: Sequence[Response], judgements: Sequence[Judgement]
    ) -> JudgeTask | None:
        """The judge's two steps for each example's likeliest wrong response."""
        if self.config.rewrite != "judge":
            return None
        scores, by_example = scores_by_example(judgements), responses_by_example(responses)
        rows = []
        for example in examples:
            wrong = self.likeliest_wrong(by_example.get(example.id, []), scores.get(example.id, {}))
            if wrong is not None:
                row = {
                    "example_id": example.id,
                    "candidate": wrong.candidate,
                    "question": example.question,
                    "answer": example.answer,
                    "wrong": wrong.text.strip(),
                }
                rows.append(json.dumps(row, ensure_ascii=False))
        asked_with = {
            "differences_prompt": self.config.differences_prompt,
            "rewrite_prompt": self.config.rewrite_prompt,
        }
        work = functools.partial(
            rewrite_rows,
            differences_prompt=self.config.differences_prompt,
            rewrite_prompt=self.config.rewrite_prompt,
        )
        return JudgeTask(rows=rows, work=work, asked_with=asked_with)

    def rewritten(self, rows: Sequence[Mapping[str, Any]]) -> list[Response]:
        """A "differences" and a "rewritten" response for each row, if the judge wrote one."""
        return [
            unsampled(row["example_id"], kind, row[kind], policy_version=row["judge"], candidate=row["candidate"])
            for row in rows
            for kind in ("differences", "rewritten")
            if row[kind].strip()
        ]

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair | str:
        """One pair, or why there is none: no_wrong_reply, cut_by_length, no_rewrite, rewrite_differs_elsewhere, no_key_phrase."""
        example, config = row.example, self.config
        wrong = self.likeliest_wrong(responses, evidence.judgements)
        if wrong is None:
            perturbed = [r for r in responses if r.kind == "perturbed"]
            return "cut_by_length" if any(map(is_cut, perturbed)) else "no_wrong_reply"
        rejected = side(wrong)
        if config.rewrite != "none":
            rewritten = next((r for r in responses if r.kind == "rewritten" and r.candidate == wrong.candidate), None)
            listed = next((r for r in responses if r.kind == "differences" and r.candidate == wrong.candidate), None)
            if rewritten is None or listed is None or not rewritten.text.strip():
                return "no_rewrite"
            if is_cut(rewritten):
                return "cut_by_length"
            if not differs_only_in(example.answer, rewritten.text, parse_differences(listed.text)):
                return "rewrite_differs_elsewhere"
            rejected = side(rewritten, wrong_reply=wrong.text.strip())
        if not any(differing_marks(example.answer.strip(), rejected.text)):
            return "no_key_phrase"
        truth = next((r for r in responses if r.kind == "truth"), None)
        reward = truth.reward if truth else math.nan
        chosen = Side(text=example.answer.strip(), reward=reward, trust=1.0, source={"kind": "truth"})
        rule = f"rewrite={config.rewrite}"
        return build_pair(example, chosen, rejected, recipe=config.name, rule=rule, policy_version=wrong.policy_version)

    def likeliest_wrong(
        self, responses: Sequence[Response], judgements: Mapping[str, Judgement] | None = None
    ) -> Response | None:
        """The wrong response to the perturbed video that the policy finds likeliest given the clean one; None if all are right.

        A reply that only says less than the ground truth is not wrong with `wrong_by: trust`, and one without a judgement is not with
        `wrong_by: judge`: nothing is known of them. A reply that was cut off is not taken.
        """

        def is_wrong(response: Response) -> bool:
            if self.config.wrong_by == "trust":
                return response.trust <= self.config.max_trust and not AGREES <= response.trust < 1
            judgement = (judgements or {}).get(response.text.strip())
            return judgement is not None and judgement.score < self.config.threshold

        whole = [r for r in responses if not is_cut(r) and not spells_special_token(r)]
        wrong = [r for r in whole if r.kind == "perturbed" and r.text.strip() and is_wrong(r)]
        return max(wrong, key=lambda r: (r.reward, -r.candidate), default=None)

    def asked(self, rows: Sequence[DataRow]) -> list[Asked]:
        plain, config, length = super().asked(rows), self.config, self.config.max_new_tokens
        steps = {"differences": config.differences_prompt, "rewrite": config.rewrite_prompt}
        if config.rewrite != "policy":
            return plain
        examples = plain[0].examples
        return [
            *plain,
            *(
                Asked(kind=kind, examples=examples, template=template, quoted=length, reply=length)
                for kind, template in steps.items()
            ),
        ]

    def describe(self) -> str:
        return f"{super().describe()}, wrong by {self.config.wrong_by}, rewrite by {self.config.rewrite}"
