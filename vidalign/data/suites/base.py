"""What a suite is: the rows that it publishes, what is asked, how a reply counts, and which numbers are made of it.

    folder ─ read ─► SuiteQuestion ─ asked ─► reply ─ mark ─► values ─ measures ─► the suite's table
                                                └──── judge ────┘     (tasks that only a judge can score)

A suite is one `Suite` object, found by its name in `vidalign.data.suites.SUITES` or as "package.module:attribute".
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from vidalign.data.suites.measures import Measure
from vidalign.data.suites.question import SuiteQuestion
from vidalign.errors import ConfigError
from vidalign.types import FrameSpec, stable_hash

Values: TypeAlias = Mapping[str, float]  # what one reply is worth, by name: {"correct": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be read: the user's folder, only some tasks (() means all), and with subtitles or without.

    `frame_spec` says which frames the model will see, for suites that show the subtitles of those; None where that is not known.
    """

    folder: pathlib.Path
    tasks: tuple[str, ...] = ()
    subtitles: bool = False
    frame_spec: FrameSpec | None = None

    def wants(self, task: str) -> bool:
        """Whether the questions of a task are to be read."""
        return not self.tasks or task in self.tasks


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteJudge:
    """How a text model is asked about a reply, and how its answer is read.

    Attributes:
        texts: the templates of its prompts, which identify it.
        ask: the prompt, from a question and the reply to it.
        read: what the reply is worth by the judge's answer; None where the answer states no verdict.
        reminder: what is said to a judge whose answer stated no verdict.
    """

    texts: tuple[str, ...]
    ask: Callable[[SuiteQuestion, str], str]
    read: Callable[[SuiteQuestion, str], Values | None]
    reminder: Callable[[SuiteQuestion], str]

    @property
    def version(self) -> str:
        """Eight hex digits that identify what is asked, stored with the scores: another wording is another judge."""
        return stable_hash(list(self.texts), 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite.

    Attributes:
        title: its own name, for tables.
        source: where its rule is from: repository and file.
        rule: how a reply counts, in one sentence, for the table.
        read: the questions in a folder. Raises `DataError` for rows of another form.
        mark: what a reply is worth; None where the rule reads no answer in it, which then counts as wrong and is counted.
        measures: the numbers of its table, given all questions that were read.
        tasks: the names of its parts, for `--task`.
        subtitles: whether it can be asked with subtitles.
        judge: scores the tasks named in `judged`.
        max_new_tokens: the longest reply that its tasks need.
        needs: raises `ConfigError` where something that scoring these questions needs is not installed.
    """

    name: str
    title: str
    source: str
    rule: str
    read: Callable[[Request], list[SuiteQuestion]]
    mark: Callable[[SuiteQuestion, str], Values | None]
    measures: Callable[[Sequence[SuiteQuestion]], list[Measure]]
    tasks: tuple[str, ...] = ()
    subtitles: bool = False
    judge: SuiteJudge | None = None
    judged: tuple[str, ...] = ()
    max_new_tokens: int = 16
    needs: Callable[[Sequence[SuiteQuestion]], None] = lambda questions: None

    def is_judged(self, question: SuiteQuestion) -> bool:
        """Whether only the judge can score the reply to this question."""
        return self.judge is not None and (not self.judged or question.task in self.judged)

    def check(self, request: Request) -> None:
        """Raises `ConfigError` for a task that the suite does not have, or subtitles where it has none."""
        unknown = [task for task in request.tasks if task not in self.tasks]
        if unknown:
            known = f"choose from {', '.join(self.tasks)}" if self.tasks else "leave --task out: it has only one"
            raise ConfigError(f"suite {self.name} has no task {unknown[0]!r}; {known}")
        if request.subtitles and not self.subtitles:
            raise ConfigError(f"suite {self.name} publishes no subtitles; leave --subtitles out")
