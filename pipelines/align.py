"""The whole story: a policy, examples and a cluster become an aligned policy, its evaluation and a report.

    base policy ─► for each round:  rollout   decode, candidates and reflection       pipelines/stages/rollout.py
                                    pairs     judge, pair, lint                       pipelines/stages/pairs.py
                                    train     objective, checkpoints, exported policy pipelines/stages/train.py
                   then:            evaluate  base and aligned behind one endpoint    pipelines/stages/evaluate.py
                                              which answers are right, and by whom    pipelines/stages/scores.py
                                    report    summary.json and report/index.html      pipelines/report.py

Every step is idempotent by its manifest: running the same command again continues a run that was stopped anywhere.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from cluster.resources import ResourcePlan
from cluster.session import connect, local_resources
from pipelines.check import check_inputs, check_judges, check_objective
from pipelines.inputs import Inputs, SplitName, read_inputs
from pipelines.progress import StageClock
from pipelines.rounds import Rounds, exported_or_none, resource_plan
from pipelines.stages.base import once
from pipelines.summary import write_summary
from vidalign import files, recipes
from vidalign.config.loading import dump_config
from vidalign.config.run import RunConfig
from vidalign.files import RunFolder
from vidalign.model.checkpoint import policy_version

STAGES = ("rollout", "train", "evaluate", "report")


def align(config: RunConfig, stages: Sequence[str] = STAGES, *, verbose: bool = False) -> dict[str, Any]:
    """Run the given stages in order and return the summary. Raises a `VidalignError` for what the user can fix."""
    check_objective(config.objective, config.train)
    check_judges(config)
    inputs = read_inputs(config.data, config.recipe, splits=splits_read(stages))
    if "rollout" in stages:
        recipes.build(config.recipe).check_data(inputs.train, source=config.data.train)  # before anything is started
    base = policy_version(config.model.path)
    run = RunFolder.open(config.run_dir)
    clock = StageClock(run.root / "wall_s.json")
    endpoint = None
    if set(stages) - {"report"}:
        with entered(config, inputs, stages, verbose=verbose) as plan:
            rounds = Rounds(config=config, run=run, plan=plan, inputs=inputs, base=base)
            rounds.accept(stages)
            files.write_text_atomic(run.config, dump_config(config))
            for index in range(config.rounds):
                if "rollout" in stages:
                    with clock.stage("rollout"):
                        once(rounds.rollout(index))
                        once(rounds.pairs(index))
                if "train" in stages:
                    with clock.stage("train"):
                        once(rounds.train(index))
            if "evaluate" in stages and config.data.eval:
                with clock.stage("evaluate"):
                    endpoint = once(rounds.evaluate())["endpoint"]
                    once(rounds.scores())
    aligned = exported_or_none(run, config.rounds - 1)
    summary = write_summary(config, run, base=base, aligned=aligned, wall_s=clock.seconds, endpoint=endpoint)
    if "report" in stages:
        from pipelines.report import write_report

        with clock.stage("report"):
            write_report(run, config)
        summary = write_summary(config, run, base=base, aligned=aligned, wall_s=clock.seconds)
    return summary


def splits_read(stages: Sequence[str]) -> Sequence[SplitName]:
    """The data files that these stages read."""
    if "rollout" in stages:
        return "train", "eval", "probe"
    return ("eval",) if "evaluate" in stages else ()


@contextlib.contextmanager
def entered(config: RunConfig, inputs: Inputs, stages: Sequence[str], *, verbose: bool) -> Iterator[ResourcePlan]:
    """Enter Ray and check data, model and context beside it: loading a processor takes as long as Ray's start."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        checking = pool.submit(check_inputs, config, inputs) if "rollout" in stages else None
        with connect(
            config.cluster,
            num_cpus_needed=lambda: resource_plan(config, local_resources(config.cluster)).num_cpus_needed,
            verbose=verbose,
        ) as resources:
            plan = resource_plan(config, resources)
            if checking is not None:
                checking.result()
            yield plan
