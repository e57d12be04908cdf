"""Recipe given: pairs that the rows already hold (a run's own among them), or only answers, for supervised fine-tuning."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence

from vidalign.config.recipes import GivenRecipe
from vidalign.data.reading import DataRow
from vidalign.data.rows import PreferenceRow
from vidalign.recipes.base import Asked, Evidence, Recipe
from vidalign.recipes.phrases import Mark, check_marks, differing_marks
from vidalign.types import PreferencePair, Response, stable_hash


class Given(Recipe[GivenRecipe]):
    """No rollout: the rows are the pairs."""

    Config = GivenRecipe
    asks_policy = False

    def given(self, rows: Sequence[DataRow]) -> list[PreferencePair]:
        return [given_pair(row) for row in rows]

    def pair(self, row: DataRow, responses: Sequence[Response], evidence: Evidence) -> PreferencePair:
        return given_pair(row)

    def asked(self, rows: Sequence[DataRow]) -> list[Asked]:
        """In training, the longer side of each pair takes the place of the ground truth."""
        longest = [
            dataclasses.replace(row.example, answer=max(pair.chosen, pair.rejected, key=len))
            for row, pair in zip(rows, self.given(rows), strict=True)
        ]
        return [*super().asked(rows), Asked(kind="given", examples=longest, template=self.config.plain_prompt)]

    def describe(self) -> str:
        return f"{self.config.name}: pairs from the data"


def given_pair(row: DataRow) -> PreferencePair:
    """The pair of a row. If the row marks no phrase, the words in which its two sides differ are marked.

    A row without responses becomes a pair of its answer and an empty rejected response, which only objective sft can train on.
    A row that a run wrote is that run's pair, with its id, marks, scores and provenance.
    """
    if row.pair is not None:
        return dataclasses.replace(row.pair, video=row.example.video, videos=row.example.videos, images=row.example.images)
    example, fields = row.example, row.row
    chosen, rejected = example.answer, ""
    scores: tuple[float | None, float | None] = (None, None)
    marks: tuple[tuple[Mark, ...], tuple[Mark, ...]] = ((), ())
    if isinstance(fields, PreferenceRow):
        chosen, rejected = fields.chosen, fields.rejected
        scores = (fields.chosen_score, fields.rejected_score)
        marks = (
            check_marks(chosen, fields.chosen_phrases, row.where),
            check_marks(rejected, fields.rejected_phrases, row.where),
        )
    if rejected and not any(marks):
        marks = differing_marks(chosen, rejected)
    rates = (getattr(fields, "chosen_win_rate", None), getattr(fields, "rejected_win_rate", None))
    won, lost = (math.nan if rate is None else rate for rate in rates)
    chosen_reward, rejected_reward = (math.nan if score is None else score for score in scores)
    return PreferencePair(
        id=stable_hash([example.id, chosen, rejected]),
        example_id=example.id,
        **example.context_fields(),
        question=example.question,
        answer=example.answer,
        category=example.category,
        chosen=chosen,
        rejected=rejected,
        chosen_marks=marks[0],
        rejected_marks=marks[1],
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
        chosen_win_rate=won,
        rejected_win_rate=lost,
        provenance=json.dumps({"recipe": "given", "source": row.where}, ensure_ascii=False),
    )
