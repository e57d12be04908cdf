"""The single interface of all recipes: from examples to responses to preference pairs.

    check_data ─► asked (what a dry run measures) ─► respond (in the generator) ─► judge_rows, rewrite (in the judge) ─► pair

A recipe is one module with a config section and a `Recipe`; nothing outside this folder asks which one it is. It is found by
its name in `vidalign.recipes.RECIPES`, or by `package.module:attribute` in `recipe.name`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar

from vidalign.config.judging import JudgeConfig
from vidalign.config.recipe import RecipeSection, SamplingSection
from vidalign.data.reading import DataRow
from vidalign.data.scorers import JUDGE
from vidalign.recipes.engine import Engine
from vidalign.recipes.judging import JudgeTask, scoring_task, trust_of
from vidalign.recipes.kinds import KINDS, Kind, kind_of
from vidalign.records import Record
from vidalign.types import Example, Judgement, PreferencePair, Response, ResponseGroup
from vidalign.video.scene import Shown

ConfigT = TypeVar("ConfigT", bound=RecipeSection)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A kind of prompt that a recipe sends: `template`, filled for each of `examples`.

    `quoted` is the maximum number of tokens of an earlier response that the template quotes. `reply` is the maximum number of
    tokens of the reply; 0 if the ground truth takes its place.
    """

    kind: str
    examples: Sequence[Example]
    template: str
    quoted: int = 0
    reply: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a pair rule may use in addition to an example's responses.

    `judgements` are this example's, by response text. `times_drawn` says how often a replayed response, by (example id, text), was
    the rejected side in earlier rounds. `seed` is for draws.
    """

    judgements: Mapping[str, Judgement] = dataclasses.field(default_factory=dict)
    times_drawn: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replays:
    """Responses of earlier rounds that may be used again, and how often each was used; see `Evidence.times_drawn`."""

    responses: Sequence[Response] = ()
    times_drawn: Mapping[tuple[str, str], int] = dataclasses.field(default_factory=collections.Counter)


class Recipe(Generic[ConfigT]):
    """Base of all recipes. A new one sets `Config` and implements `respond` and `pair` (or `group`); everything else has defaults.

    Config: the recipe's section of the configuration; a pydantic model without heavy imports.
    makes: what objectives learn from it (`Objective.consumes`): "pairs" by `pair`, or "groups" by `group`.
    asks_policy: False if no response is sampled because the data already holds the pairs.
    reuses_groups: True if its responses are those of the group rounds just before, and nothing is sampled.
    judges_answers: True if the judge says how right a response is, so that its scores are compared with what rules say.
    keeps_replays: True if `replays` uses earlier rounds. needs_tokens: True if `token_ids` of responses decide something.
    kinds: the kinds of responses that it makes, see `vidalign.recipes.kinds`.
    """

    Config: ClassVar[type[RecipeSection]]
    makes: ClassVar[Literal["pairs", "groups"]] = "pairs"
    asks_policy: ClassVar[bool] = True
    reuses_groups: ClassVar[bool] = False
    judges_answers: ClassVar[bool] = True
    kinds: ClassVar[Mapping[str, Kind]] = KINDS

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def given(self, rows: Sequence[DataRow]) -> list[PreferencePair]:
        """The pairs that the data already holds; empty if responses are sampled."""
        return []

    @property
    def keeps_replays(self) -> bool:
        """Whether responses of earlier rounds are used again."""
        return False

    @property
    def num_prompts(self) -> int | None:
        """How many of the rows a round asks about, the next ones in each; None if every round asks about all of them."""
        return None

    @property
    def drop_solved(self) -> float:
        """Share of the rows that earlier rounds' groups solved that a round passes over."""
        return 0.0

    @property
    def compares(self) -> bool:
        """Whether the responses of a group have rewards, by which they are compared."""
        return True

    @property
    def refills(self) -> bool:
        """Whether a round asks about further rows until `num_prompts` of them give something to learn from (`gives`)."""
        return False

    def gives(self, example: Example, responses: Sequence[Response]) -> bool:
        """Whether an example's responses give something to learn from. Called only if `refills`."""
        raise NotImplementedError

    @property
    def needs_other_clip(self) -> bool:
        """Whether responses are made to the clips that rows name as `rejected_video`."""
        return False

    @property
    def needs_tokens(self) -> bool:
        """Whether pairs or groups depend on how many tokens a response has, so that its `token_ids` must be read with it."""
        return False

    @property
    def judge(self) -> JudgeConfig | None:
        """The configuration of the model that judges or rewrites, if any."""
        return getattr(self.config, "judge", None)

    def check_data(self, rows: Sequence[DataRow], *, source: str) -> None:
        """Raises `DataError` if the rows of `source` lack what this recipe needs."""

    def respond(
        self, engine: Engine, examples: Sequence[Example], clips: Sequence[Shown], *, policy_version: str, seed: int
    ) -> list[Response]:
        """Sample and score every response to these examples. Equal arguments give equal responses, however they are batched."""
        raise NotImplementedError

    def judge_rows(self, examples: Sequence[Example], responses: Sequence[Response]) -> JudgeTask | None:
        """What the judge is to score; None if no judgement is needed. By default: with `trust: judge`, what no rule could tell."""
        if self.judge is None or not self.trusts_judge:
            return None
        unclear = [
            r
            for r in responses
            if math.isnan(r.trust) and kind_of(r.kind, self.kinds).side in ("chosen", "plain", "rejected")
        ]
        return scoring_task(examples, unclear, {r.kind for r in unclear}, self.judge)

    @property
    def trusts_judge(self) -> bool:
        """Whether the judge's scores are the trust of what no rule can tell."""
        return getattr(self.config, "trust", None) == JUDGE

    def trusted(self, responses: Sequence[Response], judgements: Mapping[str, Judgement]) -> Sequence[Response]:
        """One example's responses; those that no rule could judge with the judge's scores as their trust, by response text."""
        if not self.trusts_judge:
            return responses
        return [
            dataclasses.replace(r, trust=trust_of(judgements[text].score))
            if math.isnan(r.trust) and (text := r.text.strip()) in judgements
            else r
            for r in responses
        ]

    def accepts(self, score: float) -> bool:
        """Whether a judge's score makes a response a good one."""
        return score >= getattr(self.config, "threshold", 3.0)

    def rewrite(
        self, examples: Sequence[Example], responses: Sequence[Response], judgements: Sequence[Judgement]
    ) -> JudgeTask | None:
        """What the judge is to rewrite, if anything."""
        return None

    def rewritten(self, rows: Sequence[Mapping[str, Any]]) -> list[Response]:
        """The rows that the judge wrote for `rewrite`, as responses."""
        raise NotImplementedError

    def replays(self, rounds: Sequence[tuple[Sequence[Response], Sequence[PreferencePair]]]) -> Replays:
        """What is used again of earlier rounds, given oldest first. Called only if `keeps_replays`."""
        return Replays()

    def score(self, response: Response, evidence: Evidence) -> float:
        """What an example's responses are compared by to estimate their win rates, on the scale of logits; NaN if it has no score.

        The default is log(trust x exp(reward)), so that one response beats another with odds of trust x exp(reward).
        """
        return response.reward + (math.log(response.trust) if response.trust else -math.inf)

    def pairs(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> list[PreferencePair] | str:
        """The pairs of an example, by default the one that `pair` makes, or the reason why it gives none."""
        made = self.pair(row, responses, evidence)
        return made if isinstance(made, str) else [made]

    def verdicts(self, responses: Sequence[Response], judgements: Mapping[str, Mapping[str, Judgement]]) -> Sequence[Record]:
        """What else is kept of each response, as rows of verdicts.parquet. `judgements`: by example and response text."""
        return ()

    def counted(self, verdicts: Sequence[Any]) -> dict[str, int]:
        """What `verdicts` come to, for the manifest and the console."""
        return {}

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair | str:
        """One pair, or the reason (a word) why this example gives none."""
        raise NotImplementedError

    def group(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> ResponseGroup | str:
        """One group, if the recipe makes groups, or the reason (a word) why this example gives none."""
        raise NotImplementedError

    def asked(self, rows: Sequence[DataRow]) -> list[Asked]:
        """Every kind of prompt that `respond` and training use, for the check of the context length."""
        length = self.config.max_new_tokens if isinstance(self.config, SamplingSection) else 0
        examples = [row.example for row in rows]
        return [Asked(kind="plain", examples=examples, template=self.config.plain_prompt, reply=length)]

    def describe(self) -> str:
        """How the pairs are made, in one line."""
        if isinstance(self.config, SamplingSection):
            trust = f", trust by {self.config.trust}" if self.config.trust else ""
            return f"{self.config.name}: {self.config.num_candidates} candidates{trust}"
        return self.config.name


def responses_by_example(responses: Collection[Response]) -> dict[str, list[Response]]:
    """Group responses by example: {example id: its responses, in order}."""
    by_example: dict[str, list[Response]] = collections.defaultdict(list)
    for response in responses:
        by_example[response.example_id].append(response)
    return by_example


def scores_by_example(judgements: Sequence[Judgement]) -> dict[str, dict[str, Judgement]]:
    """Group judgements by example: {example id: {response text: its judgement}}."""
    scores: dict[str, dict[str, Judgement]] = collections.defaultdict(dict)
    for judgement in judgements:
        scores[judgement.example_id][judgement.response] = judgement
    return scores
