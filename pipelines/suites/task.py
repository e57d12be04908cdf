"""One suite, read from the user's folder and checked: its questions, which of their videos are there, and what is still to ask."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines import asking, progress
from pipelines.checks import model as check_model
from pipelines.suites.models import AskedModels
from vidalign.config.judging import JudgeConfig
from vidalign.data.suites import find_suite
from vidalign.data.suites.base import Request, Suite
from vidalign.data.suites.question import SuiteQuestion
from vidalign.data.suites.reading import is_missing
from vidalign.errors import ConfigError, DataError
from vidalign.video.relevance import decided_by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One suite, read: its questions, and those whose videos are there."""

    name: str
    suite: Suite
    request: Request
    questions: list[SuiteQuestion]
    present: list[SuiteQuestion]

    @property
    def missing_videos(self) -> list[str]:
        """Videos that are not there, each once."""
        asked = {question.id for question in self.present}
        return list(dict.fromkeys(question.video for question in self.questions if question.id not in asked))

    @functools.cached_property
    def by_id(self) -> Mapping[str, SuiteQuestion]:
        return {question.id: question for question in self.questions}

    def folder(self, asked: AskedModels) -> pathlib.Path:
        """Where the results go: another selection of questions has its own folder."""
        tasks = [task for task in self.suite.tasks if task in self.request.tasks]
        return asked.folder / "-".join([self.suite.name, *(["subtitles"] if self.request.subtitles else []), *tasks])


def read_task(name: str, request: Request, asked: AskedModels) -> Task:
    """Read and check a suite's questions.

    Raises:
        ConfigError: an unknown suite or task; questions that need a judge, a package or an endpoint that is not there.
        ModelError: the judge's model folder is not there.
        DataError: rows of another form; an id that is used twice; none of the videos is there.
    """
    suite = find_suite(name)
    suite.check(request)
    questions = suite.read(request)
    suite.needs(questions)
    seen: dict[str, str] = {}
    for question in questions:
        if (earlier := seen.setdefault(question.id, question.where)) != question.where or not question.id:
            raise DataError(f"{question.where}: the id {question.id!r} is also that of {earlier}; give every row its own")
    present = [question for question in questions if not is_missing(question.video)]
    if not present:
        raise DataError(
            f"none of the {len({q.video for q in questions}):,} videos of {suite.title} is there, first {questions[0].video}; unpack "
            f"them below {request.folder}, as they are published"
        )
    _check_judge(suite, questions, asked.evaluate.judge)
    if asked.running is not None and asked.frame_spec is None:
        _refuse_parts(suite, questions)
    return Task(name=name, suite=suite, request=request, questions=questions, present=present)


def _check_judge(suite: Suite, questions: Sequence[SuiteQuestion], judge: JudgeConfig | None) -> None:
    """Raises `ConfigError` or `ModelError` where questions are scored by a judge that is not set, not there, or not of texts."""
    judged = dict.fromkeys(question.task for question in questions if suite.is_judged(question))
    if not judged:
        return
    if judge is not None and judge.kind != "policy" and judge.sees == "caption":
        check_model.check_judge(judge, "evaluate.judge")
        return
    others = [task for task in suite.tasks if task not in judged]
    way_out = f", or choose other tasks with {' '.join(f'--task {task}' for task in others)}" if others else ""
    which = f"tasks {', '.join(judged)} of {suite.title} are" if any(judged) else f"{suite.title} is"
    if judge is None:
        raise ConfigError(f"{which} scored by a judge, and evaluate.judge is not set; set its kind and model{way_out}")
    raise ConfigError(
        f"{which} scored by a judge of texts, and evaluate.judge has kind={judge.kind} and sees={judge.sees}; set kind to openai or "
        f"vllm and leave sees out{way_out}"
    )


def _refuse_parts(suite: Suite, questions: Sequence[SuiteQuestion]) -> None:
    """Raises `ConfigError` for questions on parts of videos and frames in files: another's endpoint would show something else."""
    parts = list(dict.fromkeys(question.task for question in questions if question.shown != question.video))
    if parts:
        others = [task for task in suite.tasks if task not in parts]
        raise ConfigError(
            f"{suite.title} asks about parts of videos or folders of frames ({', '.join(parts)}), which only vidalign's own endpoint "
            f"reads; serve the model with `vidalign serve`, or choose other tasks with {' '.join(f'--task {task}' for task in others)}"
        )


def note_lengths(task: Task, asked: AskedModels) -> None:
    """Say where replies may be cut off before they are whole."""
    needed, given = task.suite.max_new_tokens, asked.evaluate.max_new_tokens
    if given < needed:
        progress.warn(
            f"replies of {task.suite.title} may take {needed:,} tokens, and evaluate.max_new_tokens={given:,} cuts them off; raise it"
        )


def describe(task: Task, asked: AskedModels) -> str:
    """What a run would do, for the dry run."""
    counts = collections.Counter(question.task for question in task.questions)
    lines = [
        f"{task.suite.title}: {len(task.questions):,} questions in {task.request.folder}, asked of {', '.join(asked.versions)}"
    ]
    lines += [f"  {name:<28}{count:>8,}" for name, count in counts.items() if name]
    gone = task.missing_videos
    if gone:
        questions = len(task.questions) - len(task.present)
        lines.append(f"videos that are not there: {len(gone):,}, first {gone[0]}; questions on them: {questions:,}")
    todo = sum(num_unanswered(task, asked, name) for name in asked.versions)
    lines += [
        f"{todo:,} questions still to ask; results go to {task.folder(asked)}",
        f"rule: {task.suite.rule} ({task.suite.source})",
    ]
    return "\n".join(lines)


def made_from(task: Task, asked: AskedModels) -> dict[str, Any]:
    """What decides replies beside the questions: another suite or another sampling of frames is another evaluation."""
    spec = asked.frame_spec
    chosen = decided_by(spec) if spec is not None and asked.serving is not None else {}  # a running endpoint's is elsewhere
    return {"suite": task.name, "video": spec.to_row() if spec else None, **chosen}


def num_unanswered(task: Task, asked: AskedModels, name: str) -> int:
    """How many questions one model has not been asked yet."""
    return asking.num_unanswered(
        [question.example() for question in task.present],
        model_id=name,
        version=asked.versions[name],
        stage=task.folder(asked),
        config=asked.evaluate,
        made_from=made_from(task, asked),
    )
