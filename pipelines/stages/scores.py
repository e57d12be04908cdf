"""Scores: which of the answers of an evaluation are right, by whom, and which of them nobody could judge.

    answers ─► evaluate.scorer (by default the rules of the answer's kind) ─► evaluate.judge, for what it cannot tell ─► scored answers

Answers are not asked for again when they are scored in another way: only this stage's folder is made anew.
"""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from actors.decoder import decoded_videos
from cluster.resources import Workers
from pipelines import progress
from pipelines.moved import Moved
from pipelines.stages.base import Stage, identity, once
from pipelines.stages.judge import Judging
from vidalign import files
from vidalign.config.judging import JudgeConfig
from vidalign.config.run import EvaluateConfig, ModelConfig, VideoConfig
from vidalign.data import scorers
from vidalign.data.answers import kind_of
from vidalign.recipes.judging import JudgeTask, judge_rows, judged_row
from vidalign.types import MODEL_IDS, EvalAnswer, Example, PolicyVersion

MAX_UNSCORED_SHARE = 0.05
Answers = Mapping[str, Sequence[EvalAnswer]]  # by model id


@dataclasses.dataclass(kw_only=True)
class Scores(Stage):
    """The answers of every model with their scores, one table a model.

    `answers`: the folder of the evaluation. `policy`: the base, which judges where evaluate.judge.kind is "policy". `cache`: the frame
    cache, for a judge that sees the frames.
    """

    name: ClassVar[str] = "score"

    folder: pathlib.Path
    answers: pathlib.Path
    evaluate: EvaluateConfig
    examples: Sequence[Example]
    policy: PolicyVersion
    model: ModelConfig
    video: VideoConfig
    cache: pathlib.Path
    decoders: Workers
    engines: Workers
    data: Moved = dataclasses.field(default_factory=Moved)
    earlier: Callable[[], Stage | None] | None = None

    @property
    def needs(self) -> Sequence[pathlib.Path]:
        return [self.answers]

    def inputs(self) -> dict[str, Any]:
        config, judge = self.evaluate, self.evaluate.judge
        return {
            "answers": identity(self.answers),
            "evaluate.scorer": config.scorer,
            "evaluate.min_score": config.min_score,
            "evaluate.threshold": config.threshold,
            "evaluate.judge": judge.deciding() if judge else None,
        }

    def run(self) -> dict[str, Any]:
        """Write one table a model. Facts: the judge's name, how many answers it scored, how many of its replies were unreadable; and
        the figures of a scorer that has some."""
        examples = {example.id: example for example in self.examples}
        paths = {name: self.answers / f"{name}.parquet" for name in MODEL_IDS}
        given = {name: files.read_table(path, EvalAnswer) for name, path in paths.items() if path.is_file()}
        answers: Answers = {
            name: [scored(answer, examples[answer.example_id], self.evaluate) for answer in made]
            for name, made in given.items()
        }
        facts: dict[str, Any] = {}
        if self.evaluate.judge is not None:
            answers, facts["judge"] = self._judged(answers, examples, self.evaluate.judge)
        if figures := _figures(answers, examples, self.evaluate.scorer):
            facts["figures"] = figures
        for name, made in answers.items():
            files.write_table(self.folder / f"{name}.parquet", made)
        if (warning := unscored_warning(answers, self.evaluate)) is not None:
            progress.warn(warning)
        return facts

    def _judged(
        self, answers: Answers, examples: Mapping[str, Example], judge: JudgeConfig
    ) -> tuple[Answers, dict[str, Any]]:
        open_ones = [
            answer for made in answers.values() for answer in made if answer.correct is None and answer.text.strip()
        ]
        asked = [examples[answer.example_id] for answer in open_ones] if judge.needs_frames else []
        shown = {name for example in asked for name in example.context.visuals}
        frames = self._frames(shown) if shown else {}
        stage = Judging(
            folder=self.folder / "judgements",
            judge=judge,
            task=judge_task(open_ones, examples, judge, frames),
            engines=self.engines,
            label="judge answers",
            key="evaluate.judge",
            frames=frames,
            policy=self.policy,
            model=self.model,
            data=self.data,
        )
        once(stage)
        rows = stage.rows()
        found = {(row["example_id"], row["response"]): row for row in rows if "score" in row}
        judged = {name: [by_judge(answer, found, self.evaluate) for answer in made] for name, made in answers.items()}
        unreadable = collections.Counter(row["reason"] for row in rows if "score" not in row)
        name = next((row["judge"] for row in rows), None)
        return judged, {"name": name, "judged": len(found), "quarantined": dict(unreadable)}

    def _frames(self, videos: set[str]) -> dict[str, str]:
        """{video uri: its decoded clip}; a video that cannot be decoded is left out."""
        rows = decoded_videos(
            sorted(videos),
            self.video.frame_spec(),
            str(self.cache),
            backend=self.video.backend,
            deadline_s=self.video.deadline_s,
            num_decoders=self.decoders.num,
            fewest_decoders=self.decoders.fewest,
            num_cpus=self.decoders.cpus,
        )
        return {row.video: row.frames_path for row in rows if row.frames_path}


def scored(answer: EvalAnswer, example: Example, config: EvaluateConfig) -> EvalAnswer:
    """An answer with the score of the configured scorer; `correct` None where it cannot tell. An empty answer is wrong."""
    kind = kind_of(example)
    f1 = scorers.overlap(answer.text, example) if kind in scorers.WORDED else None
    answer = dataclasses.replace(answer, kind=kind, f1=f1, judge="", explanation="")
    if not answer.text.strip():
        return dataclasses.replace(answer, correct=False, scorer=scorers.RULES, score=0.0)
    found = scorers.score(answer.text, example, config.scorer)
    if found.value is None:
        return dataclasses.replace(answer, correct=None, scorer="", score=None)
    return dataclasses.replace(answer, correct=found.value >= config.min_score, scorer=found.scorer, score=found.value)


def judge_task(
    answers: Sequence[EvalAnswer], examples: Mapping[str, Example], judge: JudgeConfig, frames: Mapping[str, str]
) -> JudgeTask:
    """The task of scoring these answers, equal ones once, by the row's caption or else its ground truth."""
    rows: dict[str, None] = {}
    for answer in answers:
        example = examples[answer.example_id]
        if not judge.needs_frames or all(name in frames for name in example.context.visuals):
            rows[judged_row(example, answer.text.strip(), example.caption or example.answer, judge)] = None
    return JudgeTask(rows=list(rows), work=judge_rows)


def by_judge(answer: EvalAnswer, found: Mapping[tuple[str, str], Mapping[str, Any]], config: EvaluateConfig) -> EvalAnswer:
    """An answer that is still open with the judge's score; as it is where the judge gave none."""
    row = found.get((answer.example_id, answer.text.strip()))
    if answer.correct is not None or row is None:
        return answer
    return dataclasses.replace(
        answer,
        correct=row["score"] >= config.threshold,
        scorer=scorers.JUDGE,
        score=row["score"],
        judge=row["judge"],
        explanation=row["explanation"],
    )


def unscored_warning(answers: Answers, config: EvaluateConfig) -> str | None:
    """A sentence with the ways out where more than `MAX_UNSCORED_SHARE` of a model's answers were not scored."""
    for name, made in answers.items():
        count = sum(answer.correct is None for answer in made)
        if count > MAX_UNSCORED_SHARE * len(made):
            way_out = (
                "look at the judge's replies, or raise evaluate.judge.max_new_tokens"
                if config.judge
                else "set evaluate.judge to a model that can, or evaluate.scorer=f1 to go by the overlap of words"
            )
            return (
                f"{count:,} of {len(made):,} answers of {name} could not be scored and are in no accuracy, because nothing could tell "
                f"whether they are right; {way_out}"
            )
    return None


def _figures(answers: Answers, examples: Mapping[str, Example], scorer: str | None) -> dict[str, dict[str, float]]:
    """Of all answers of each model, by the scorer's `measure`."""
    made = {
        name: scorers.figures(scorer, [answer.text for answer in given], [examples[answer.example_id] for answer in given])
        for name, given in answers.items()
    }
    return {name: figures for name, figures in made.items() if figures}
