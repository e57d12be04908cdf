"""`vidalign evaluate --suite NAME --data FOLDER`: a published suite, asked of base and aligned through the endpoint.

    rows ── the suite reads them ── questions ── asking.py ── replies ── the suite's rule ─┬─ scores.json, table.md
                                                                 └────── the judge ────────┘

Everything is kept in `<run>/rounds/<n>/suites/<suite>/`: replies as they arrive (`<model>.jsonl`), verdicts of a judge
(`<model>-verdicts.jsonl`), what each reply is worth (`<model>-marks.jsonl`). A rerun asks and judges only what is missing.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from pipelines import asking, progress
from pipelines.asking import Evaluation
from pipelines.suites import tables
from pipelines.suites.context import check_prompts
from pipelines.suites.judging import verdicts
from pipelines.suites.models import AskedModels
from pipelines.suites.scores import difference, facts, scored
from pipelines.suites.task import Task, describe, made_from, note_lengths, num_unanswered, read_task
from vidalign import files
from vidalign.data.suites.base import Request
from vidalign.data.suites.question import SuiteQuestion
from vidalign.types import Example


def evaluate_suite(task: Task, asked: AskedModels, *, verbose: bool = False) -> dict[str, Any]:
    """Ask, judge and score; write and return what `scores.json` holds. Raises as `pipelines.asking.evaluate` does."""
    folder = task.folder(asked)
    with _cluster(task, asked, verbose=verbose) as resources:
        replies = _replies(task, asked, folder, resources)
        judged = {
            name: verdicts(
                task.name, task.suite, _to_judge(task, found), asked, folder / f"{name}-verdicts.jsonl", resources
            )
            for name, found in replies.items()
        }
    marks, models = {}, {}
    for name, found in replies.items():
        marks[name], models[name] = scored(task, found, judged[name], folder / f"{name}-marks.jsonl")
        models[name] = {"policy_version": asked.versions[name], **models[name]}
    scores = {**facts(task, asked), "models": models, "difference": difference(task, marks)}
    files.write_json(folder / "scores.json", scores)
    files.write_text_atomic(folder / "table.md", tables.markdown(files.read_json(folder / "scores.json")))
    return files.read_json(folder / "scores.json")


@contextlib.contextmanager
def _cluster(task: Task, asked: AskedModels, *, verbose: bool) -> Iterator[Any]:
    """What the cluster offers, where one is needed: to serve models, or to judge. None where nothing is left to do there."""
    from cluster.plan import plan_serve
    from cluster.resources import MIN_CPUS
    from cluster.session import connect, local_resources

    to_serve = asked.serving is not None and any(num_unanswered(task, asked, name) for name in asked.versions)
    if not to_serve and not any(task.suite.is_judged(question) for question in task.questions):
        yield None
        return

    def needed() -> int:
        if asked.serving is None:
            return MIN_CPUS
        return plan_serve(asked.serving.config.serve, local_resources(asked.cluster), len(asked.versions)).num_cpus_needed

    with connect(asked.cluster, num_cpus_needed=needed, verbose=verbose) as resources:
        yield resources


def _replies(task: Task, asked: AskedModels, folder: pathlib.Path, resources: Any) -> dict[str, Evaluation]:
    """The replies of every model; nothing is served where none is missing."""
    examples = [question.example() for question in task.present]

    def is_right(text: str, example: Example) -> bool:
        question = task.by_id[example.id]
        return not task.suite.is_judged(question) and (task.suite.mark(question, text) or {}).get("correct") == 1.0

    def ask(endpoint: Any) -> dict[str, Evaluation]:
        return {
            name: asking.evaluate(
                examples,
                endpoint,
                model_id=name,
                stage=folder,
                config=asked.evaluate,
                is_right=is_right,
                made_from=made_from(task, asked),
            )
            for name in asked.versions
        }

    from serving.app import Endpoint, endpoint
    from serving.spec import EndpointSpec

    if asked.running is not None:
        return ask(asked.running)
    if not any(num_unanswered(task, asked, name) for name in asked.versions):
        return ask(Endpoint(base_url="", versions=asked.versions))
    from cluster.plan import plan_serve

    assert asked.serving is not None
    assert resources is not None
    config = asked.serving.config
    media_root = config.serve.media_root or str(task.request.folder.absolute())
    spec = EndpointSpec(
        models=asked.serving.models,
        model=config.model,
        serve=config.serve.model_copy(update={"media_root": media_root}),
        plan=plan_serve(config.serve, resources, len(asked.versions)),
        frame_spec=asked.serving.frame_spec,
        decoder=config.video.backend,
        deadline_s=config.video.deadline_s,
        num_decoders=config.video.num_decoders,
    )
    with progress.waiting("start endpoint") as on_wait, endpoint(spec, on_wait=on_wait) as running:
        return ask(running)


def _to_judge(task: Task, found: Evaluation) -> list[tuple[SuiteQuestion, str]]:
    replies = [(task.by_id[answer.example_id], answer.text) for answer in found.answers]
    return [(question, text) for question, text in replies if task.suite.is_judged(question)]


def run(
    name: str,
    folder: str,
    asked: AskedModels,
    *,
    tasks: Sequence[str] = (),
    subtitles: bool = False,
    dry_run: bool = False,
    verbose: bool = False,
) -> None:
    """What the command does: read, say what is planned, or ask and print the table."""
    for note in asked.notes:
        print(f"note: {note}", file=sys.stderr)
    request = Request(folder=pathlib.Path(folder), tasks=tuple(tasks), subtitles=subtitles, frame_spec=asked.frame_spec)
    task = read_task(name, request, asked)
    note_lengths(task, asked)
    lines = check_prompts(task, asked)
    if dry_run:
        print("\n".join([describe(task, asked), *lines]))
        return
    print(tables.console(evaluate_suite(task, asked, verbose=verbose)))
    print(f"\ntable    {task.folder(asked) / 'table.md'}")
