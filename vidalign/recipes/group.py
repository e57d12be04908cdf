"""Recipe group: the policy's own replies to each prompt, in groups, each with its reward and the log-probs that it was sampled with.

    plain      question alone, clean video                ─► n replies; their token ids and log-probs are what training takes
    shuffled   question alone, frames in any order        ─► num_shuffled replies, for the reward "temporal" alone
    group      rewards of the n replies (`vidalign.recipes.rewards`), added up

A reply that was cut off, in which the policy said a special token, or whose reward cannot be told keeps its place in its group but is
neither in the mean nor learned from; with the reward "overlong", one that was cut off is. A group with fewer than two others is
dropped, under the most frequent of these reasons; without rewards, one with none.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np

from vidalign import prompts
from vidalign.config.degrading import PerturbConfig
from vidalign.config.recipes import GroupRecipe
from vidalign.data.reading import DataRow
from vidalign.data.scorers import trust_by
from vidalign.learning.advantages import is_uniform
from vidalign.recipes import rewards
from vidalign.recipes.base import Evidence, Recipe, responses_by_example, scores_by_example
from vidalign.recipes.engine import Engine, Request
from vidalign.recipes.judging import JudgeTask, scoring_task
from vidalign.recipes.kinds import is_cut, spells_special_token
from vidalign.recipes.sampling import Chunk
from vidalign.types import Example, Judgement, Response, ResponseGroup, stable_hash
from vidalign.video.clip import Clip
from vidalign.video.perturb import perturb
from vidalign.video.scene import Shown, changed

ANY_ORDER = PerturbConfig(mask_area=None, shuffle="global")  # type: ignore[call-arg]
KINDS_ASKED = ("plain", "shuffled")


class Group(Recipe[GroupRecipe]):
    """Replies of the policy in groups with rewards."""

    Config = GroupRecipe
    makes: ClassVar[Literal["pairs", "groups"]] = "groups"

    @property
    def needs_tokens(self) -> bool:
        return self.config.asks_how_long

    @property
    def num_prompts(self) -> int | None:
        return self.config.num_prompts

    @property
    def drop_solved(self) -> float:
        return self.config.drop_solved

    @property
    def refills(self) -> bool:
        return self.config.refill

    @property
    def compares(self) -> bool:
        return bool(self.config.rewards)

    def gives(self, example: Example, responses: Sequence[Response]) -> bool:
        """Whether its replies make a group whose rewards differ."""
        made = self._group(example, responses, Evidence())
        return not isinstance(made, str) and not is_uniform(made.rewards)

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        """Sample the replies to these examples. A reply's `reward` is the mean of the log-probs that it was sampled with."""
        config = self.config
        chunk = Chunk(engine, examples, clips, policy_version, seed, config.trust)

        def request(kind: str, row: int, candidate: int) -> Request:
            draw = chunk.request_seed(row, kind, candidate)
            shown = clips[row] if kind == "plain" else changed(clips[row], lambda clip: _shuffled(clip, draw))
            return Request(
                prompt=prompts.fill(config.plain_prompt, question=examples[row].question),
                clip=shown,
                seed=draw,
                temperature=config.temperature,
                top_p=config.top_p,
                max_new_tokens=config.max_new_tokens,
            )

        asked = {"plain": config.num_candidates, "shuffled": config.num_shuffled}
        replies: list[Response] = []
        for kind, count in asked.items():
            slots = [
                (row, candidate)
                for row, example in enumerate(examples)
                if kind == "plain" or example.context.videos
                for candidate in range(count)
            ]
            replies += chunk.ask(kind, [(row, candidate, request(kind, row, candidate)) for row, candidate in slots])
        by_id = {example.id: example for example in examples}
        return [
            dataclasses.replace(
                r,
                reward=math.fsum(r.log_probs) / len(r.log_probs) if r.log_probs else math.nan,
                trust=trust_by(config.trust, r.text, by_id[r.example_id]),
            )
            for r in replies
        ]

    def judge_rows(self, examples: Sequence[Example], responses: Sequence[Response]) -> JudgeTask | None:
        if self.judge is None:
            return None
        unclear = [
            r
            for r in responses
            if math.isnan(r.trust) and r.kind in KINDS_ASKED and not (is_cut(r) or _why_not(r, self.config))
        ]
        return scoring_task(examples, unclear, set(KINDS_ASKED), self.judge)

    def group(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> ResponseGroup | str:
        """One group without its `tokens`, or why there is none: cut_by_length, special_token, not_scored, missing."""
        return self._group(row.example, responses, evidence)

    def _group(self, example: Example, responses: Sequence[Response], evidence: Evidence) -> ResponseGroup | str:
        config = self.config
        made = {r.candidate: r for r in responses if r.kind == "plain"}
        replies = [made.get(candidate) for candidate in range(config.num_candidates)]
        left_out = ["missing" if reply is None else _why_not(reply, config) for reply in replies]
        said = [None if reply is None or why else _said(reply) for reply, why in zip(replies, left_out, strict=True)]
        shuffled = [_said(r) for r in responses if r.kind == "shuffled" and not _why_not(r, config)]
        parts = rewards.parts_of(said, shuffled, example, config, evidence.judgements)
        values = rewards.totals(parts, config.rewards) if self.compares else [0.0] * len(replies)
        for place, value in enumerate(values):
            if left_out[place]:
                values[place] = math.nan
            elif math.isnan(value):
                left_out[place] = "not_scored"
        if len(values) - sum(map(bool, left_out)) < (2 if config.rewards else 1):
            return collections.Counter(filter(None, left_out)).most_common(1)[0][0]
        return ResponseGroup(
            id="",
            example_id=example.id,
            **example.context_fields(),
            question=example.question,
            answer=example.answer,
            category=example.category,
            texts=tuple("" if reply is None else reply.text for reply in replies),
            rewards=tuple(values),
            left_out=tuple(left_out),
            policy_version=next(r.policy_version for r in replies if r is not None),
            tokens="",
            parts=json.dumps(parts),
        )

    def describe(self) -> str:
        added = " + ".join(f"{weight:g} {name}" for name, weight in self.config.rewards.items()) or "by a value model"
        prompts_said = f", {self.config.num_prompts} prompts a round" if self.config.num_prompts else ""
        return f"{super().describe()}, rewards {added}{prompts_said}{' that differ' if self.config.refill else ''}"


def _shuffled(clip: Clip, seed: int) -> Clip:
    return perturb(clip, ANY_ORDER, np.random.default_rng(seed))


def _said(reply: Response) -> rewards.Said:
    return rewards.Said(text=reply.text, num_tokens=len(reply.token_ids), is_cut=is_cut(reply))


def _why_not(reply: Response, config: GroupRecipe) -> str:
    """Why a reply is nothing to learn from, whatever its reward; empty where it is."""
    if is_cut(reply) and "overlong" not in config.rewards:
        return "cut_by_length"
    return "special_token" if spells_special_token(reply) else ""


def make_groups(
    rows: Sequence[DataRow],
    responses: Sequence[Response],
    recipe: Recipe[GroupRecipe],
    judgements: Sequence[Judgement] = (),
    *,
    decoded: Collection[str],
    tokens: Mapping[tuple[str, int], str],
) -> tuple[list[ResponseGroup], dict[str, int]]:
    """Group the replies to each example. Returns the groups, in the rows' order, and the number of examples dropped by reason.

    Args:
        decoded: the videos and images that could be decoded; examples with others are counted as "video_quarantined".
        tokens: a hash of the token ids of each plain reply, by example and candidate.
    """
    by_example, scores = responses_by_example(responses), scores_by_example(judgements)
    groups: list[ResponseGroup] = []
    dropped: collections.Counter[str] = collections.Counter()
    for row in rows:
        example = row.example
        if not all(name in decoded for name in example.context.visuals):
            dropped["video_quarantined"] += 1
            continue
        outcome = recipe.group(row, by_example.get(example.id, []), Evidence(judgements=scores.get(example.id, {})))
        if isinstance(outcome, str):
            dropped[outcome] += 1
            continue
        said = stable_hash([tokens.get((example.id, candidate), "") for candidate in range(len(outcome.texts))])
        name = stable_hash([example.id, outcome.policy_version, said, list(map(bool, outcome.left_out))])
        groups.append(dataclasses.replace(outcome, id=name, tokens=said))
    return groups, dict(dropped)
