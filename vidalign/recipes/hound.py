"""LLaVA-Hound's data recipe (arXiv 2404.01258): the policy's own samples, which a judge then scores against a caption.

plain    question alone, clean video            ─► n responses, their rewards and trust
caption  caption prompt, clean video, greedy    ─► one caption per video, if the data has none (captions: policy)
judge    caption, question, truth, response     ─► score 1-5 and explanation (actors/judge.py, after all responses)
pair     chosen = best score, rejected = worst score, on either side of the threshold and a gap apart; the likelier response
         wins a tie
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vidalign import prompts
from vidalign.config.recipes import HoundRecipe
from vidalign.data.reading import DataRow
from vidalign.errors import DataError
from vidalign.recipes.base import Asked, Evidence, Recipe
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.judging import JudgeTask, scoring_task
from vidalign.recipes.kinds import is_cut
from vidalign.recipes.pairing import build_pair, side
from vidalign.recipes.sampling import Chunk, request_seed
from vidalign.types import Example, PreferencePair, Response
from vidalign.video.scene import Shown, without_conversation


class Hound(Recipe[HoundRecipe]):
    """Samples of the policy that a judge scores high against samples that it scores low."""

    Config = HoundRecipe

    def check_data(self, rows: Sequence[DataRow], *, source: str) -> None:
        """Every row needs a caption, unless the policy writes them or the judge reads none."""
        if not self.config.judge.reads_caption:
            return
        uncaptioned = [row.example.id for row in rows if not row.example.caption.strip()]
        if self.config.captions == "data" and uncaptioned:
            raise DataError(
                f"recipe.captions=data needs a 'caption' in every row of {source}, but {len(uncaptioned)} of {len(rows)} rows "
                f"have none, the first {uncaptioned[0]!r}; add captions, set recipe.captions=policy to have the policy write them, or "
                "recipe.judge.sees=video for a judge that sees the video"
            )

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        """Sample and score the responses to these examples, and caption their videos if the policy is to write the captions."""
        chunk = Chunk(engine, examples, clips, policy_version, seed, self.config.trust)

        def plain(row: int, candidate: int) -> Request:
            return Request(
                prompt=prompts.fill(self.config.plain_prompt, question=examples[row].question),
                clip=clips[row],
                seed=chunk.request_seed(row, "plain", candidate),
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                max_new_tokens=self.config.max_new_tokens,
            )

        replies = chunk.sample("plain", self.config.num_candidates, plain)
        replies = chunk.score(replies, self.config.plain_prompt)
        return [*replies, *self._captions(chunk)]

    def _captions(self, chunk: Chunk) -> list[Response]:
        if self.config.captions != "policy":
            return []
        asked = []
        for row, (example, clip) in enumerate(zip(chunk.examples, chunk.clips, strict=True)):
            request = Request(
                prompt=self.config.caption_prompt,
                clip=without_conversation(clip),
                seed=request_seed(chunk.seed, example.video, "caption"),
                temperature=0.0,
                top_p=1.0,
                max_new_tokens=self.config.max_new_tokens,
            )
            asked.append((row, 0, request))
        return chunk.ask("caption", asked)

    def judge_rows(self, examples: Sequence[Example], responses: Sequence[Response]) -> JudgeTask:
        return scoring_task(examples, responses, {"plain"}, self.config.judge)

    def score(self, response: Response, evidence: Evidence) -> float:
        """The judge's score: a response one point better wins with probability sigmoid(1) = 0.73."""
        judgement = evidence.judgements.get(response.text.strip())
        return math.nan if judgement is None else judgement.score

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair | str:
        """One pair, or why there is none: not_judged, cut_by_length, all_good, all_bad, no_score_gap."""
        config, judgements = self.config, evidence.judgements
        judged = [r for r in responses if r.kind == "plain" and r.text.strip() in judgements]
        scored = [(r, judgements[r.text.strip()]) for r in judged if not is_cut(r)]
        good = [(r, j) for r, j in scored if j.score >= config.threshold]
        bad = [(r, j) for r, j in scored if j.score < config.threshold]
        if not judged:
            return "not_judged"
        if not scored:
            return "cut_by_length"
        if not good or not bad:
            if any(is_cut(r) and (judgements[r.text.strip()].score >= config.threshold) is not bool(good) for r in judged):
                return "cut_by_length"
            return "all_bad" if bad else "all_good"
        chosen, praised = max(good, key=lambda item: (item[1].score, item[0].reward, -item[0].candidate))
        rejected, blamed = min(bad, key=lambda item: (item[1].score, -item[0].reward, item[0].candidate))
        if praised.score - blamed.score < config.min_score_gap:
            return "no_score_gap"
        sides = [
            side(response, score=judgement.score, explanation=judgement.explanation, judge=judgement.judge)
            for response, judgement in ((chosen, praised), (rejected, blamed))
        ]
        return build_pair(row.example, *sides, recipe=config.name, rule=f"threshold={config.threshold:g}")

    def asked(self, rows: Sequence[DataRow]) -> list[Asked]:
        plain, config = super().asked(rows), self.config
        if config.captions != "policy":
            return plain
        caption = Asked(
            kind="caption", examples=plain[0].examples, template=config.caption_prompt, reply=config.max_new_tokens
        )
        return [*plain, caption]

    def describe(self) -> str:
        config = self.config
        judge = config.judge.model or config.judge.kind
        return f"{super().describe()}, judge {judge}, threshold {config.threshold:g}, captions from {config.captions}"
