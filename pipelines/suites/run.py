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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cluster import interrupts
from cluster.lease import Lease
from cluster.waiting import placement_watched
from pipelines import asking, progress
from pipelines.asking import Evaluation
from pipelines.suites import tables
from pipelines.suites.context import check_prompts
from pipelines.suites.judging import verdicts
from pipelines.suites.models import AskedModels
from pipelines.suites.scores import difference, facts, scored
from pipelines.suites.task import Task, describe, made_from, note_lengths, num_unanswered, read_task
from pipelines.tracking import Tracking
from vidalign import files
from vidalign.config.run import EvaluateConfig
from vidalign.data.suites.base import Request
from vidalign.data.suites.question import SuiteQuestion
from vidalign.errors import VidalignError
from vidalign.types import Example


def evaluate_suite(task: Task, asked: AskedModels, *, verbose: bool = False) -> dict[str, Any]:
    """Ask, judge and score; write and return what `scores.json` holds. Raises as `pipelines.asking.evaluate` does."""
    folder = task.folder(asked)
    with (
        interrupts.stoppable() as stop,
        Lease(folder, f"vidalign evaluate --suite {task.name}", on_loss=stop, on_wait=progress.note),
        _cluster(task, asked, stop=stop, verbose=verbose) as resources,
    ):
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
def _cluster(task: Task, asked: AskedModels, *, stop: Callable[[VidalignError], None], verbose: bool) -> Iterator[Any]:
    """What the cluster offers, where one is needed: to serve models, or to judge. None where nothing is left to do there."""
    from cluster.plan import plan_evaluation
    from cluster.resources import MIN_CPUS
    from cluster.session import connect, local_resources

    to_serve = asked.serving is not None and any(num_unanswered(task, asked, name) for name in asked.versions)
    if not to_serve and not any(task.suite.is_judged(question) for question in task.questions):
        yield None
        return

    def needed() -> int:
        if asked.serving is None:
            return MIN_CPUS
        here, in_turn = local_resources(asked.cluster), asked.evaluate.in_turn
        return plan_evaluation(asked.serving.config.serve, in_turn, here, len(asked.versions)).num_cpus_needed

    with (
        connect(asked.cluster, num_cpus_needed=needed, verbose=verbose) as resources,
        placement_watched(asked.cluster.wait_for_nodes_s, say=progress.note, stop=stop),
    ):
        yield resources


def _replies(task: Task, asked: AskedModels, folder: pathlib.Path, resources: Any) -> dict[str, Evaluation]:
    """The replies of every model; nothing is served where none is missing."""
    examples = [question.example() for question in task.present]

    def is_right(text: str, example: Example) -> bool:
        question = task.by_id[example.id]
        return not task.suite.is_judged(question) and (task.suite.mark(question, text) or {}).get("correct") == 1.0

    def ask(endpoint: Any, config: EvaluateConfig = asked.evaluate, *, at_once: bool = False) -> dict[str, Evaluation]:
        found = asking.evaluate_each(
            examples,
            endpoint,
            [(name, False) for name in endpoint.versions],
            stage=folder,
            config=config,
            is_right=is_right,
            made_from=made_from(task, asked),
            at_once=at_once,
        )
        return dict(zip(endpoint.versions, found, strict=True))

    from serving.app import Endpoint
    from serving.spec import EndpointSpec

    if asked.running is not None:
        return ask(asked.running)
    wanted = [name for name in asked.versions if num_unanswered(task, asked, name)]
    if not wanted:
        return ask(Endpoint(base_url="", versions=asked.versions))
    from cluster.plan import plan_evaluation
    from pipelines.endpoints import at_each, at_its_pace

    assert asked.serving is not None
    assert resources is not None
    config = asked.serving.config
    media_root = config.serve.media_root or str(task.request.folder.absolute())
    spec = EndpointSpec(
        models=asked.serving.models,
        model=config.model,
        serve=config.serve.model_copy(update={"media_root": media_root}),
        plan=plan_evaluation(config.serve, asked.evaluate.in_turn, resources, len(asked.versions)),
        frame_spec=asked.serving.frame_spec,
        decoder=config.video.backend,
        deadline_s=config.video.deadline_s,
        num_decoders=config.video.most_decoders,
        wait_for_nodes_s=asked.cluster.wait_for_nodes_s,
    )
    paced = at_its_pace(asked.evaluate, spec)
    found = at_each(spec, wanted, lambda running: ask(running, paced, at_once=spec.plan.bundle_gpus == 1))
    return {name: replies for part in found for name, replies in part.items()}


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
    if asked.run is not None:
        its_run, config = asked.run
        Tracking(config, its_run).finish(files.read_json(its_run.summary) if its_run.summary.is_file() else {})
    print(f"\ntable    {task.folder(asked) / 'table.md'}")
