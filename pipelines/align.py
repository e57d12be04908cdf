"""The whole story: a policy, examples and a cluster become an aligned policy, its evaluation and a report.

    base policy ─► for each round:  rollout   decode, candidates and reflection, pairs        pipelines/stages/rollout.py
                                    train     objective, checkpoints, exported policy         pipelines/stages/train.py
                   then:            evaluate  base and aligned behind one HTTP endpoint       pipelines/evaluate.py
                                    report    summary.json and report/index.html              pipelines/report.py

Every step is idempotent by its manifest: running the same command again continues a run that was stopped anywhere.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from cluster.plan import plan as make_plan
from cluster.resources import ClusterResources, ResourcePlan
from cluster.session import connect, local_resources
from pipelines import progress
from pipelines.check import check_inputs, check_objective
from pipelines.progress import StageClock
from pipelines.stages.rollout import read_inputs, rollout
from pipelines.stages.train import exported, train
from pipelines.summary import write_summary
from vidalign import files
from vidalign.config.loading import dump_config
from vidalign.config.run import RunConfig
from vidalign.data.reading import read_examples
from vidalign.errors import DataError
from vidalign.files import RunFolder
from vidalign.model.checkpoint import policy_version
from vidalign.types import Example, PolicyVersion

STAGES = ("rollout", "train", "evaluate", "report")


def align(config: RunConfig, stages: tuple[str, ...] = STAGES, *, verbose: bool = False) -> dict[str, Any]:
    """Run the given stages in order and return the summary. Raises a `VidalignError` for what the user can mend."""
    check_objective(config)
    if "rollout" in stages:
        read_inputs(config)  # a mistake in the data is found before anything is started
    base = policy_version(config.model.path)
    run = open_run(config)
    clock = StageClock(run.root / "wall_s.json")
    served = None
    if set(stages) - {"report"}:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            # Loading the model's processor takes as long as the start of Ray's processes: side by side.
            checking = pool.submit(check_inputs, config) if "rollout" in stages else None
            with connect(
                config.cluster,
                num_cpus_needed=lambda: _plan(config, local_resources(config.cluster)).num_cpus_needed,
                verbose=verbose,
            ) as resources:
                plan = _plan(config, resources)
                if checking is not None:
                    checking.result()
                served = _run_stages(config, stages, run, base, plan, clock)
    aligned = exported_or_none(run, config.rounds - 1)
    summary = write_summary(config, run, base=base, aligned=aligned, wall_s=clock.seconds, endpoint=served)
    if "report" in stages:
        from pipelines.report import write_report

        with clock.stage("report"):
            write_report(run, config)
        summary = write_summary(config, run, base=base, aligned=aligned, wall_s=clock.seconds)
    return summary


def _plan(config: RunConfig, resources: ClusterResources) -> ResourcePlan:
    return make_plan(
        resources,
        rollout=config.rollout,
        train=config.train,
        serve=config.serve,
        num_decoders=config.video.num_decoders,
    )


def _run_stages(
    config: RunConfig, stages: tuple[str, ...], run: RunFolder, base: PolicyVersion, plan: ResourcePlan, clock: StageClock
) -> dict[str, Any] | None:
    """The stages that need the cluster. What evaluation found of the endpoint, if it ran."""
    for round_index in range(config.rounds):
        policy = base if round_index == 0 else aligned_policy(run, round_index - 1)
        if "rollout" in stages:
            with clock.stage("rollout"):
                rollout(config, run, plan, policy, round_index)
        if "train" in stages:
            with clock.stage("train"):
                train(config, run, plan, policy, round_index)
    if "evaluate" in stages and config.data.eval:
        with clock.stage("evaluate"):
            return evaluate(config, run, plan, base)
    return None


def evaluate(config: RunConfig, run: RunFolder, plan: ResourcePlan, base: PolicyVersion) -> dict[str, Any]:
    """Serve base and aligned side by side and ask both the held-out questions over HTTP; and base again, blind."""
    from pipelines.evaluate import evaluate as ask
    from serving.app import endpoint
    from serving.spec import EndpointSpec

    assert config.data.eval is not None
    aligned = aligned_policy(run, config.rounds - 1)
    examples = read_examples(config.data.eval, video_root=config.data.video_root, limit=config.data.eval_limit)
    stage = run.stage("eval", config.rounds - 1)
    made_from = {
        "policies": [base.version, aligned.version],
        "examples": [example.to_row() for example in examples],
        "evaluate": config.evaluate.model_dump(mode="json", include={"max_new_tokens", "blind"}),
        "video": config.video.frame_spec().to_row(),
        "prompt": config.recipe.plain_prompt,
    }
    if files.is_finished(stage, made_from):
        return files.read_json(stage / files.MANIFEST)["endpoint"]
    files.claim(stage, made_from)
    media_root = config.serve.media_root or common_folder(examples)
    serve = config.serve.model_copy(update={"media_root": media_root})
    spec = EndpointSpec(
        models={"base": base, "aligned": aligned},
        model=config.model,
        serve=serve,
        plan=plan.serve,
        frame_spec=config.video.frame_spec(),
        decoder=config.video.backend,
    )
    with progress.waiting("start endpoint") as on_wait, endpoint(spec, on_wait=on_wait) as running:
        questions = [("base", False), ("aligned", False), *([("base", True)] if config.evaluate.blind else [])]
        for model_id, blind in questions:
            ask(
                examples,
                running,
                model_id=model_id,
                stage=stage,
                config=config.evaluate,
                prompt=config.recipe.plain_prompt,
                blind=blind,
            )
        served = {"model_ids": list(running.model_ids)}
    files.finish(stage, made_from, endpoint=served)
    return served


def common_folder(examples: Sequence[Example]) -> str:
    """The deepest folder that holds every local video of these examples: what the endpoint may read files from."""
    folders = [str(pathlib.Path(e.video.removeprefix("file://")).parent) for e in examples if "://" not in e.video[4:]]
    return os.path.commonpath(folders) if folders else "."


def open_run(config: RunConfig) -> RunFolder:
    """Create the run folder, or open it again with the same configuration.

    Stages check what they were made from themselves; here `config.yaml` is brought up to date, so that it always shows the
    configuration of the newest command.
    """
    run = RunFolder.open(config.run_dir)
    files.write_text_atomic(run.config, dump_config(config))
    return run


def aligned_policy(run: RunFolder, round_index: int) -> PolicyVersion:
    """The policy that a round exported. Raises `DataError` when that round has not been trained."""
    policy = exported_or_none(run, round_index)
    if policy is None:
        raise DataError(f"{run.root} holds no trained policy of round {round_index}; run `vidalign train` on it first")
    return policy


def exported_or_none(run: RunFolder, round_index: int) -> PolicyVersion | None:
    folder = run.stage("model", round_index)
    finished = (run.stage("train", round_index) / files.MANIFEST).is_file()
    return exported(folder) if finished else None


def table(summary: dict[str, Any], run_dir: str) -> str:
    """What the console shows at the end: base against aligned, the report and the command that serves the model."""
    from pipelines.report import summary_table

    run = RunFolder.open(run_dir)
    lines = [summary_table(summary), "", f"report   {run.report / 'index.html'}", f"serve    vidalign serve {run_dir}"]
    return "\n".join(lines)
