"""The whole story: a policy, examples and a cluster become an aligned policy, its evaluation and a report.

    base policy ─► for each round:  rollout   decode, candidates and reflection       pipelines/stages/rollout.py
                                    pairs     judge, pair, lint                       pipelines/stages/pairs.py
                                    train     objective, checkpoints, exported policy pipelines/stages/train.py
                   then:            evaluate  base and aligned behind one endpoint    pipelines/stages/evaluate.py
                                              which answers are right, and by whom    pipelines/stages/scores.py
                                    report    summary.json and report/index.html      pipelines/report.py

Every step is idempotent by its manifest: running the same command again continues a run that was stopped anywhere. With
`cluster.overlap`, rollout and pairs of the next rounds are made while this one trains (pipelines/overlap.py).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from cluster import interrupts
from cluster.described import Machines
from cluster.lease import Lease, check_free
from cluster.preflight import Wanted, nodes_checked, wanted
from cluster.resources import ClusterResources, ResourcePlan, plan_of_nothing
from cluster.session import connect, local_device_memory, local_resources, total_memory
from cluster.waiting import placement_watched, requested
from pipelines import finished, progress
from pipelines.ahead import Ahead
from pipelines.check import STAGES, before, check_inputs, check_plan
from pipelines.checks.places import check_port
from pipelines.inputs import Inputs
from pipelines.moved import record
from pipelines.overlap import overlapped
from pipelines.progress import StageClock
from pipelines.rounds import Rounds, exported_or_none, resource_plan
from pipelines.stages.base import once
from pipelines.summary import write_summary
from pipelines.tracking import Tracking
from serving.leftovers import clear_leftovers
from vidalign import files, mirror
from vidalign.config.loading import dump_config
from vidalign.config.run import RunConfig
from vidalign.errors import VidalignError
from vidalign.files import RunFolder
from vidalign.model.checkpoint import policy_version
from vidalign.storage import is_uri
from vidalign.types import PolicyVersion


def align(config: RunConfig, stages: Sequence[str] = STAGES, *, verbose: bool = False) -> dict[str, Any]:
    """Run the given stages in order and return the summary. Raises a `VidalignError` for what the user can fix."""
    mirror.refresh(RunFolder.at(config.run_dir).root)
    works = bool(set(stages) - {"report"})  # a report is of what the run has so far, and may be written beside its driver
    if works:
        check_free(RunFolder.at(config.run_dir).root)  # before the data is read, which may take a while
    inputs = before(config, stages, connects=works)
    base = policy_version(config.model.path)
    run = RunFolder.open(config.run_dir)
    clock = StageClock(run.root / "wall_s.json")
    tracking = Tracking(config, run)
    endpoint = None
    if works:
        with (
            interrupts.stoppable() as stop,
            Lease(run.root, f"vidalign {command(stages)}", on_loss=stop, on_wait=progress.note),
        ):
            mirror.refresh(run.root)  # another driver may have ended a moment ago
            rounds = Rounds(config=config, run=run, plan=plan_of_nothing(), inputs=inputs, base=base)
            ahead = rounds.accept(stages)  # and read the stored configuration before this one takes its place
            progress.note(outlook(ahead))
            if all(stage.is_finished for stage in ahead):
                record(run, rounds.data, inputs)
                files.write_text_atomic(run.config, dump_config(config))
            else:
                with entered(config, inputs, stages, base, stop=stop, verbose=verbose) as (plan, text_tokens, asked_for):
                    rounds = dataclasses.replace(rounds, plan=plan, text_tokens=text_tokens)
                    _ = rounds.stored
                    record(run, rounds.data, inputs)
                    files.write_text_atomic(run.config, dump_config(config))
                    files.write_json(run.plan, dataclasses.asdict(plan))
                    with tracking.following():
                        endpoint = run_stages(rounds, stages, clock, asked_for)
    aligned = exported_or_none(run, config.rounds - 1)
    summary = write_summary(config, run, base=base, aligned=aligned, wall_s=clock.seconds, endpoint=endpoint)
    if "report" in stages:
        from pipelines.report import write_report

        with clock.stage("report"):
            write_report(run, config)
        summary = write_summary(config, run, base=base, aligned=aligned, wall_s=clock.seconds)
    if works:
        tracking.finish(summary)
    finished.record(run, config, stages)
    return summary


def run_stages(
    rounds: Rounds,
    stages: Sequence[str],
    clock: StageClock,
    asked_for: Callable[..., AbstractContextManager[None]],
) -> dict[str, Any] | None:
    """Run what is left of these stages, in order. Returns what is known of the endpoint, where there was an evaluation.

    `asked_for`: takes the workers of what is run in its block.
    """
    config, plan = rounds.config, rounds.plan

    def respond(index: int) -> None:
        with clock.stage("rollout"):
            once(rounds.rollout(index))
            once(rounds.pairs(index))

    def train(index: int) -> None:
        with clock.stage("train"):
            once(rounds.train(index))

    if config.cluster.overlap and {"rollout", "train"} <= set(stages):
        with asked_for(plan.engines, plan.train):
            overlapped(config.rounds, config.staleness, respond, train)
    else:
        for index in range(config.rounds):
            if "rollout" in stages:
                with asked_for(plan.engines):
                    respond(index)
            if "train" in stages:
                with asked_for(plan.train):
                    train(index)
    if "evaluate" not in stages or not config.data.eval:
        return None
    with clock.stage("evaluate"), asked_for(plan.serve.workers()):
        endpoint = once(rounds.evaluate())["endpoint"]
        once(rounds.scores())
    return endpoint


def outlook(ahead: Sequence[Ahead]) -> str:
    """What a command will do and what it will not do again, before it does anything."""
    left = [str(stage) for stage in ahead if not stage.is_finished]
    if not left:
        return "nothing is left to do: every stage is finished with this configuration"
    kept = [f"{stage.name} of round {stage.round_index}" for stage in ahead if stage.is_finished]
    return "; ".join([*left, *([f"finished and kept: {', '.join(kept)}"] if kept else [])])


def command(stages: Sequence[str]) -> str:
    """The command that runs these stages."""
    return stages[0] if len(stages) == 1 else "align"


@contextlib.contextmanager
def entered(
    config: RunConfig,
    inputs: Inputs,
    stages: Sequence[str],
    base: PolicyVersion,
    *,
    stop: Callable[[VidalignError], None],
    verbose: bool,
) -> Iterator[tuple[ResourcePlan, int, Callable[..., AbstractContextManager[None]]]]:
    """Enter Ray and check data, model and context beside it: loading a processor takes as long as Ray's start.

    `stop` ends the run from another thread. Yields the plan, the tokens of the longest prompt and its reply without the video, and
    what asks the autoscaler for the workers of a stage.
    """
    progress.note("starting Ray, and checking data, model and context beside it")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        checking = pool.submit(check_inputs, config, inputs, stages)
        with connect(
            config.cluster,
            num_cpus_needed=lambda: resource_plan(config, local_resources(config.cluster)).num_cpus_needed,
            verbose=verbose,
        ) as resources:
            found = checking.result()
            if cleared := clear_leftovers():
                progress.note(f"took down {', '.join(cleared)}, an endpoint whose driver was killed")
            check_port(config, stages)
            plan, _ = check_plan(config, stages, inputs, found, machines_of(resources), base=base)
            for warning in found.warnings:
                print(f"note: {warning}", file=sys.stderr)
            with (
                nodes_checked(needs_of(config, inputs, plan, base), warn=progress.warn),
                placement_watched(config.cluster.wait_for_nodes_s, say=progress.note, stop=stop),
            ):
                yield plan, found.text_tokens, functools.partial(requested, grows=resources.grows)


def needs_of(config: RunConfig, inputs: Inputs, plan: ResourcePlan, base: PolicyVersion) -> Wanted:
    """What every node must have before this run places work there."""
    caches = {"video.cache_dir": config.video.cache_dir, "train.cache_dir": config.train.cache_dir}
    return wanted(
        {"run_dir": RunFolder.at(config.run_dir).root, **{key: path for key, path in caches.items() if path}},
        model="" if is_uri(config.model.path) else base.path,  # every node stages it for itself
        videos=inputs.present,
        uses_gpus=plan.use_gpu or plan.engines.gpus > 0 or plan.serve.bundle_gpus > 0,
    )


def machines_of(resources: ClusterResources) -> Machines:
    """The cluster that is connected. Memory is known where it is this machine alone."""
    here = local_resources()
    if resources.num_nodes > 1 or resources.grows or resources.num_gpus != here.num_gpus:
        return Machines(resources=resources)
    gpu_memory = local_device_memory(True) if here.num_gpus else None
    return Machines(resources=resources, gpu_memory=gpu_memory, host_memory=total_memory())
