"""RRPO's data recipe (arXiv 2504.12083): the policy's own errors on a perturbed video, against the ground truth.

    perturbed    question alone, perturbed video or another clip        ─► n responses
    score        question alone, clean video                            ─► reward and trust; wrong responses by likelihood
    differences  question, truth and wrong response (rewrite: policy)   ─► "right phrase => wrong phrase", one per line
    rewritten    truth with only those phrases swapped in               ─► the rejected response, parallel to the truth
    score        truth and rewrite                                      ─► rewards
    pair         chosen = the ground truth; rejected = the wrong response that the policy finds likeliest, or its rewrite

With `bridge`, a "bridged" response takes the place of the ground truth: the wrong one, corrected (`vidalign.recipes.bridging`).

The steps from "differences" on are greedy. A rewrite that differs in phrases other than the listed ones cannot be used. Then the wrong
response takes its place, if that differs from the truth in the listed phrases only, or else the next likeliest one is tried, up to
`rewrite_tries` of them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidalign import prompts
from vidalign.config.rewriting import RrpoRecipe
from vidalign.data.answers import AGREES
from vidalign.data.reading import DataRow
from vidalign.recipes.base import Asked, Evidence, Recipe, responses_by_example, scores_by_example
from vidalign.recipes.bridging import bridge_rows, bridged_pair, why_not_bridged
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.judging import JudgeTask, scoring_task
from vidalign.recipes.kinds import is_cut, spells_special_token
from vidalign.recipes.pairing import Side, build_pair, is_known_wrong, side
from vidalign.recipes.phrases import differing_marks, parse_differences
from vidalign.recipes.rewriting import is_usable, rewrite_rows
from vidalign.recipes.sampling import Chunk, unsampled
from vidalign.types import Example, Judgement, PreferencePair, Response
from vidalign.video.clip import Clip
from vidalign.video.perturb import perturb
from vidalign.video.scene import Scene, Shown, changed


class Rrpo(Recipe[RrpoRecipe]):
    """Wrong responses to a perturbed video against the ground truth, if configured rewritten to be parallel to it."""

    Config = RrpoRecipe

    @property
    def needs_other_clip(self) -> bool:
        return self.config.shows == "rejected_video"

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        """Sample and score the responses to these examples, with the ground truths and the policy's rewrites."""
        chunk = Chunk(engine, examples, clips, policy_version, seed, self.config.trust)

        def on_perturbed(row: int, candidate: int) -> Request:
            draw = chunk.request_seed(row, "perturbed", candidate)
            return Request(
                prompt=prompts.fill(self.config.plain_prompt, question=examples[row].question),
                clip=self._seen(clips[row], draw),
                seed=draw,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                max_new_tokens=self.config.max_new_tokens,
            )

        slots = [
            (row, candidate)
            for row, clip in enumerate(clips)
            if self.config.shows == "perturbed" or _other(clip) is not None
            for candidate in range(self.config.num_candidates)
        ]
        replies = chunk.ask("perturbed", [(row, candidate, on_perturbed(row, candidate)) for row, candidate in slots])
        replies = chunk.score(replies, self.config.plain_prompt)
        truths = [unsampled(e.id, "truth", e.answer, policy_version=policy_version) for e in examples]
        rewrites = self._rewrites(chunk, replies) if self.config.rewrite == "policy" else []
        if self.config.bridge == "policy":
            rewrites = self._bridges(chunk, replies)
        rewritten = [r for r in rewrites if r.kind in ("rewritten", "bridged")]
        scored = chunk.score([*truths, *rewritten], self.config.plain_prompt)
        return [*replies, *scored, *(r for r in rewrites if r.kind == "differences")]

    def _seen(self, what: Shown, seed: int) -> Shown:
        """What the policy is shown to answer wrongly."""
        if self.config.shows == "rejected_video" and (other := _other(what)) is not None:
            return changed(what, lambda _: other)
        rng = np.random.default_rng(seed)
        return changed(what, lambda clip: perturb(clip, self.config.perturb, rng))

    def _rewrites(self, chunk: Chunk, replies: Sequence[Response]) -> list[Response]:
        """For each example, lists of differences and rewrites for its wrong responses, until one rewrite is usable."""
        by_example = responses_by_example(replies)
        left = [(row, self.wrong_ones(e, by_example.get(e.id, []))) for row, e in enumerate(chunk.examples)]
        made: list[Response] = []
        for number in range(self.config.rewrite_tries):
            left = [(row, wrong) for row, wrong in left if number < len(wrong)]
            listed = self._ask(chunk, [(row, wrong[number]) for row, wrong in left], "differences")
            usable = [(row, r) for (row, _), r in zip(left, listed, strict=True) if parse_differences(r.text)]
            rewritten = self._ask(chunk, usable, "rewritten")
            made += [*listed, *rewritten]
            found = {row: (r, differences.text) for (row, differences), r in zip(usable, rewritten, strict=True)}
            done = {
                row
                for row, wrong in left
                if row in found and self._parallel(chunk.examples[row], wrong[number], *found[row]) is not None
            }
            left = [(row, wrong) for row, wrong in left if row not in done]
        return made

    def _bridges(self, chunk: Chunk, replies: Sequence[Response]) -> list[Response]:
        """For each example, corrections of its wrong responses, until one can be chosen."""
        by_example = responses_by_example(replies)
        left = [(row, self.wrong_ones(e, by_example.get(e.id, []))) for row, e in enumerate(chunk.examples)]
        made: list[Response] = []
        for number in range(self.config.rewrite_tries):
            left = [(row, wrong) for row, wrong in left if number < len(wrong)]
            written = self._ask(chunk, [(row, wrong[number]) for row, wrong in left], "bridged")
            made += written
            left = [
                (row, wrong)
                for (row, wrong), r in zip(left, written, strict=True)
                if why_not_bridged(chunk.examples[row], wrong[number], r, self.config)
            ]
        return made

    def _ask(self, chunk: Chunk, about: Sequence[tuple[int, Response]], kind: str) -> list[Response]:
        """One greedy reply about each (row, earlier response), which the prompt quotes."""
        config = self.config
        templates = {
            "differences": config.differences_prompt,
            "rewritten": config.rewrite_prompt,
            "bridged": config.bridge_prompt,
        }
        asked = []
        for row, earlier in about:
            example, quoted = chunk.examples[row], earlier.text.strip()
            request = Request(
                prompt=prompts.fill(templates[kind], question=example.question, answer=example.answer, previous=quoted),
                clip=chunk.clips[row],
                seed=chunk.request_seed(row, kind, earlier.candidate),
                temperature=0.0,
                top_p=1.0,
                max_new_tokens=self.config.max_new_tokens,
            )
            asked.append((row, earlier.candidate, request))
        return chunk.ask(kind, asked)

    def judge_rows(self, examples: Sequence[Example], responses: Sequence[Response]) -> JudgeTask | None:
        if self.config.wrong_by == "judge" and self.judge is not None:
            return scoring_task(examples, responses, {"perturbed"}, self.judge)
        return super().judge_rows(examples, responses)

    def rewrite(
        self, examples: Sequence[Example], responses: Sequence[Response], judgements: Sequence[Judgement]
    ) -> JudgeTask | None:
        """The judge's two steps for each example's likeliest wrong responses, or its corrections of them."""
        config = self.config
        if "judge" not in (config.rewrite, config.bridge):
            return None
        scores, by_example = scores_by_example(judgements), responses_by_example(responses)
        rows = []
        for example in examples:
            judged = scores.get(example.id, {})
            wrong = self.wrong_ones(example, self.trusted(by_example.get(example.id, []), judged), judged)
            if wrong:
                row: dict[str, Any] = {"example_id": example.id, "question": prompts.conversation(example)}
                row |= {"answer": example.answer} if config.bridge == "none" else {"example": example.to_row()}
                row["wrong"] = [{"candidate": r.candidate, "text": r.text.strip()} for r in wrong[: config.rewrite_tries]]
                rows.append(json.dumps(row, ensure_ascii=False))
        if config.bridge == "judge":
            correct = functools.partial(bridge_rows, bridge_prompt=config.bridge_prompt, recipe=config)
            decides = {
                "trust": str(config.trust),
                "max_trust": str(config.max_trust),
            }  # of how many responses of an example are tried
            return JudgeTask(rows=rows, work=correct, asked_with={"bridge_prompt": config.bridge_prompt, **decides})
        prompts_of = {"differences_prompt": config.differences_prompt, "rewrite_prompt": config.rewrite_prompt}
        work: Any = functools.partial(rewrite_rows, **prompts_of)  # type: ignore[arg-type]
        return JudgeTask(rows=rows, work=work, asked_with=prompts_of)

    def rewritten(self, rows: Sequence[Mapping[str, Any]]) -> list[Response]:
        """A "differences" and a "rewritten" response for each row, or a "bridged" one, if the judge wrote one."""
        return [
            unsampled(row["example_id"], kind, row[kind], policy_version=row["judge"], candidate=row["candidate"])
            for row in rows
            for kind in ("differences", "rewritten", "bridged")
            if row.get(kind, "").strip()
        ]

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair | str:
        """One pair with the likeliest wrong response that can be used, or why there is none.

        no_wrong_reply, no_other_clip (the row has none that was decoded), trust_unclear (some replies may be right or wrong),
        cut_by_length, no_rewrite, rewrite_differs_elsewhere, no_key_phrase; with `bridge`, those of `why_no_bridge`: where several
        were tried, what was wrong with the first.
        """
        example, config = row.example, self.config
        wrong = self.wrong_ones(example, responses, evidence.judgements)
        if not wrong:
            perturbed = [r for r in responses if r.kind == "perturbed"]
            if not perturbed and config.shows == "rejected_video":
                return "no_other_clip"
            if any(map(is_cut, perturbed)):
                return "cut_by_length"
            unclear = config.wrong_by == "trust" and any(self._is_unclear(r, example) for r in perturbed if r.text.strip())
            return "trust_unclear" if unclear else "no_wrong_reply"
        if config.bridge != "none":
            return bridged_pair(example, wrong[: config.rewrite_tries], responses, config)
        tries = wrong[: 1 if config.rewrite == "none" else config.rewrite_tries]
        found = [self._rejected(example, each, responses) for each in tries]
        used = next((at for at, rejected in enumerate(found) if not isinstance(rejected, str)), None)
        if used is None:
            assert isinstance(found[0], str)
            return found[0]
        rejected = found[used]
        assert isinstance(rejected, Side)
        truth = next((r for r in responses if r.kind == "truth"), None)
        reward = truth.reward if truth else math.nan
        chosen = Side(text=example.answer.strip(), reward=reward, trust=1.0, source={"kind": "truth"})
        rule = f"rewrite={config.rewrite}"
        return build_pair(
            example, chosen, rejected, recipe=config.name, rule=rule, policy_version=tries[used].policy_version
        )

    def _rejected(self, example: Example, wrong: Response, responses: Sequence[Response]) -> Side | str:
        """The rejected side that is made of a wrong response, or why none can be made."""
        rejected = side(wrong)
        if self.config.rewrite != "none":
            rewritten = next((r for r in responses if r.kind == "rewritten" and r.candidate == wrong.candidate), None)
            listed = next((r for r in responses if r.kind == "differences" and r.candidate == wrong.candidate), None)
            if rewritten is None or listed is None or not rewritten.text.strip():
                return "no_rewrite"
            parallel = self._parallel(example, wrong, rewritten, listed.text)
            if parallel is None:
                return "cut_by_length" if is_cut(rewritten) else "rewrite_differs_elsewhere"
            rejected = parallel
        return rejected if any(differing_marks(example.answer.strip(), rejected.text)) else "no_key_phrase"

    def _parallel(self, example: Example, wrong: Response, rewritten: Response, listed: str) -> Side | None:
        """The rewrite, or else the wrong response, if it differs from the truth only in what is listed; None if neither does."""
        if not is_cut(rewritten) and is_usable(example.answer, rewritten.text, listed):
            return side(rewritten, wrong_reply=wrong.text.strip())
        return side(wrong) if is_usable(example.answer, wrong.text, listed) else None

    def wrong_ones(
        self, example: Example, responses: Sequence[Response], judgements: Mapping[str, Judgement] | None = None
    ) -> list[Response]:
        """The wrong responses to the perturbed video, likeliest first as the policy finds them given the clean one; each text once.

        A reply of which nothing is known is not wrong: one that no rule can judge (`trust` null), that only says less than the ground
        truth, or, with `wrong_by: judge`, that has no judgement. A reply that was cut off is not taken.
        """

        def is_wrong(response: Response) -> bool:
            if self.config.wrong_by == "trust":
                return response.trust <= self.config.max_trust and not self._is_unclear(response, example)
            judgement = (judgements or {}).get(response.text.strip())
            return judgement is not None and judgement.score < self.config.threshold

        whole = [r for r in responses if not is_cut(r) and not spells_special_token(r)]
        wrong = [r for r in whole if r.kind == "perturbed" and r.text.strip() and is_wrong(r)]
        ordered = sorted(wrong, key=lambda r: (-r.reward, r.candidate))
        return list({r.text.strip(): r for r in reversed(ordered)}.values())[::-1]

    def _is_unclear(self, response: Response, example: Example) -> bool:
        """Whether trust cannot tell if a response is wrong."""
        scorer, trust = self.config.trust, response.trust
        if scorer is None and trust < 1:
            return not is_known_wrong(response, example)
        return math.isnan(trust) or (scorer == "f1" and AGREES <= trust < 1)

    def asked(self, rows: Sequence[DataRow]) -> list[Asked]:
        plain, config, length = super().asked(rows), self.config, self.config.max_new_tokens
        steps = {"differences": config.differences_prompt, "rewrite": config.rewrite_prompt}
        if config.bridge == "policy":
            steps = {"bridge": config.bridge_prompt}
        elif config.rewrite != "policy":
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
        bridge = "" if self.config.bridge == "none" else f", bridge by {self.config.bridge}"
        return f"{super().describe()}, wrong by {self.config.wrong_by}, rewrite by {self.config.rewrite}{bridge}"


def _other(what: Shown) -> Clip | None:
    """The other clip of the row that this is of."""
    return what.other if isinstance(what, Scene) else None
