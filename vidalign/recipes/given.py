"""Recipe given: pairs that the rows hold already, or answers alone for supervised fine-tuning."""

from __future__ import annotations

import json
import math

from vidalign.data.reading import DataRow
from vidalign.data.rows import PreferenceRow
from vidalign.recipes import phrases
from vidalign.types import PreferencePair, stable_hash


def given_pair(row: DataRow) -> PreferencePair:
    """The pair of a row, marked where its two sides differ if the row marks no phrase.

    A row without responses becomes a pair of its answer and an empty rejected response, on which only objective sft can be
    trained.
    """
    example, fields = row.example, row.row
    chosen, rejected = example.answer, ""
    scores: tuple[float | None, float | None] = (None, None)
    marks: tuple[tuple[phrases.Mark, ...], tuple[phrases.Mark, ...]] = ((), ())
    if isinstance(fields, PreferenceRow):
        chosen, rejected = fields.chosen, fields.rejected
        scores = (fields.chosen_score, fields.rejected_score)
        marks = (
            phrases.check_marks(chosen, fields.chosen_phrases, row.where),
            phrases.check_marks(rejected, fields.rejected_phrases, row.where),
        )
    if rejected and not any(marks):
        marks = phrases.differing_marks(chosen, rejected)
    chosen_reward, rejected_reward = (math.nan if score is None else score for score in scores)
    return PreferencePair(
        id=stable_hash([example.id, chosen, rejected]),
        example_id=example.id,
        video=example.video,
        question=example.question,
        answer=example.answer,
        category=example.category,
        chosen=chosen,
        rejected=rejected,
        chosen_marks=marks[0],
        rejected_marks=marks[1],
        chosen_reward=chosen_reward,
        rejected_reward=rejected_reward,
        provenance=json.dumps({"recipe": "given", "source": row.where}, ensure_ascii=False),
    )
