"""What is found out before anything is started: does the config fit the data, the model, the context, the cluster?

    before          objective, data, recipe, folders, port
    check_inputs    models, vLLM ─► longest prompt + largest video against the context       the same three in a run and in a dry run,
    check_plan      resource plan ─► earlier stages of the run folder ─► memory ─► disk      in which nothing else happens

Starts no engine and no Ray, loads no weights. What cannot work raises a `VidalignError` of one sentence; what is merely worth
knowing is a line or a warning of the report.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from cluster.described import Machines
from cluster.launcher import with_growth
from cluster.lease import check_free
from cluster.resources import ClusterResources, ResourcePlan, Workers
from cluster.session import local_device_memory, local_resources, total_memory
from pipelines.checks import model as check_model
from pipelines.checks.context import Tokens, check_tokens, prompts_asked
from pipelines.checks.learning import (
    check_clip_pairs,
    check_clips,
    check_given,
    check_objective,
    check_prompts,
    check_recipe,
    check_reuse,
)
from pipelines.checks.memory import check_memory
from pipelines.checks.overlap import check_judges_fit, check_staleness, overlap_lines
from pipelines.checks.places import check_disk, check_places, data_lines
from pipelines.checks.shapes import check_shapes, check_training
from pipelines.checks.texts import check_texts
from pipelines.inputs import Inputs, SplitName, read_inputs
from pipelines.rounds import Rounds, check_order, resource_plan
from pipelines.stages.base import BEGUN, MANIFEST
from pipelines.value_rounds import check_values
from vidalign import mirror, recipes
from vidalign.config.loading import dump_config
from vidalign.config.rounds import variants
from vidalign.config.run import RunConfig
from vidalign.files import RunFolder
from vidalign.model import quantized, sequence_parallel, shared_prefix, vision_attention, vision_features
from vidalign.model.checkpoint import policy_version
from vidalign.model.engine_rules import check_on_cpu
from vidalign.model.turns import turns_of
from vidalign.types import PolicyVersion
from vidalign.video import relevance
from vidalign.video.naming import without_question

STAGES = ("rollout", "train", "evaluate", "report")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The findings, in the order of `render`. Lines are complete sentences or aligned `name: value` pairs."""

    config: str
    resources: tuple[str, ...]
    data: tuple[str, ...]
    model: tuple[str, ...]
    tokens: tuple[str, ...]
    memory: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What `check_inputs` knows of model and context.

    `num_tokens`: of the longest prompt with its video and reply, 0 if unknown; `text_tokens`: without the video.
    """

    model: check_model.ModelFacts
    tokens: tuple[str, ...] = ()
    num_tokens: int = 0
    text_tokens: int = 0
    warnings: tuple[str, ...] = ()


def check(
    config: RunConfig, stages: Sequence[str] = STAGES, *, machines: Machines | None = None, ask_vllm: bool = True
) -> CheckReport:
    """The dry run of these stages: everything that can be known without starting anything.

    Args:
        machines: the cluster to plan for; None: this machine, grown as `cluster.max_num_gpus` says.
        ask_vllm: also ask vLLM whether it serves the architecture, which costs the seconds of importing it.

    Raises:
        VidalignError: the first thing that cannot work.
    """
    planned_for = machines or this_machine(config)
    if planned_for.here:
        mirror.refresh(RunFolder.at(config.run_dir).root)
    if planned_for.here and set(stages) - {"report"}:
        check_free(RunFolder.at(config.run_dir).root)
    inputs = before(config, stages, here=planned_for.here)
    found = check_inputs(config, inputs, stages, ask_vllm=ask_vllm, fetch=False)
    made, memory = check_plan(config, stages, inputs, found, planned_for)
    named = config.cluster.address or os.environ.get("RAY_ADDRESS")
    warnings = [*found.warnings, *([planned_for.note] if planned_for.note else [])]
    if machines is None and named not in (None, "local"):
        warnings.append(
            f"planned for this machine, because a dry run does not connect to the cluster at {named}; describe it with --on, "
            "such as --on 8x80"
        )
    return CheckReport(
        config=dump_config(config),
        resources=tuple(_plan_lines(config, made, planned_for.resources)),
        data=tuple(data_lines(config, inputs)),
        model=tuple(found.model.lines),
        tokens=found.tokens,
        memory=tuple(memory),
        warnings=tuple(warnings),
    )


def this_machine(config: RunConfig) -> Machines:
    """This machine's resources and memory, as far as the cluster of which it is the head may grow."""
    here = local_resources(config.cluster)
    grown = with_growth(here, config.cluster)
    if grown.total_gpus == here.num_gpus:
        gpu_memory = local_device_memory(True) if here.num_gpus else None
        return Machines(resources=grown, gpu_memory=gpu_memory, host_memory=total_memory())
    return Machines(
        resources=grown,
        host_memory=total_memory(),
        note=f"planned for a cluster that grows to {grown.total_gpus} GPUs, whose memory is not known here; describe it with --on, "
        "such as --on 8x80, to check that as well. A Ray that is started on this machine does not grow",
    )


def before(config: RunConfig, stages: Sequence[str], *, here: bool = True, connects: bool = False) -> Inputs:
    """Check what needs neither model nor cluster, and read the data of these stages. `here`: the run's driver is on this machine.

    `connects`: see `pipelines.checks.places.check_places`.

    Raises:
        VidalignError: the first thing that cannot work.
    """
    steps = variants(config)
    for step in steps:
        check_objective(step.objective, step.train)
    if here:
        check_order(config, stages)
    for step in steps:
        check_recipe(step)
        check_clip_pairs(step)
    check_reuse(config)
    check_values(config)
    relevance.check(config.video.choice.relevance)
    check_staleness(config)
    inputs = read_inputs(config.data, config.recipe, choice=config.video.choice.frame_choice(), splits=splits_read(stages))
    if "rollout" in stages:
        for step in steps:
            recipes.build(step.recipe).check_data(inputs.train, source=config.data.train)
            check_prompts(step, len(inputs.train))
            check_clips(step, inputs.train)
            if "train" in stages:
                check_given(step, inputs.train)
    if here:
        check_places(config, stages, connects=connects)
    return inputs


def splits_read(stages: Sequence[str]) -> Sequence[SplitName]:
    """The data files that these stages read."""
    if "rollout" in stages:
        return "train", "eval", "probe"
    return ("eval",) if "evaluate" in stages else ()


def check_inputs(
    config: RunConfig, inputs: Inputs, stages: Sequence[str] = STAGES, *, ask_vllm: bool = True, fetch: bool = True
) -> Findings:
    """What can be known of models and context without a cluster. `ask_vllm` and `fetch`: see `pipelines.checks.model.inspect`.

    Raises:
        ModelError, ConfigError: the first thing that cannot work.
    """
    steps = variants(config)
    check_judges(config, steps, ask_vllm=ask_vllm)
    model = check_model.inspect(config.model, ask_vllm=ask_vllm, fetch=fetch, engine_args=config.rollout.engine_args)
    if "train" in stages and any(step.train.cache_vision_features for step in steps):
        vision_features.check(model.outline)
    warnings = list(model.warnings)
    if inputs.missing:
        warnings.append(
            f"{len(inputs.missing):,} of {len(inputs.missing) + len(inputs.present):,} videos are missing and will be "
            f"quarantined, first {without_question(inputs.missing[0])}"
        )
    check_texts(inputs, [step.recipe for step in steps], turns_of(model.processor).special)
    asked = [each for step in steps for each in prompts_asked(inputs, recipes.build(step.recipe), config.evaluate)]
    plain = {name for example in inputs.examples if example.context.is_plain for name in example.context.videos}
    tokens = Tokens()
    if plain:
        videos = [video for video in inputs.present if video in plain]
        tokens = check_tokens(asked, videos, config.video, model, config.model)
    lines, more = check_shapes(asked, config.video, model, config.model.max_model_len)
    for step in steps:
        check_training(step.train, [*(row.example for row in inputs.train), *inputs.probe], model.config.model_type)
    return Findings(
        model=model,
        tokens=(*tokens.lines, *lines),
        num_tokens=tokens.needed,
        text_tokens=tokens.text,
        warnings=(*warnings, *tokens.warnings, *more),
    )


def check_plan(
    config: RunConfig,
    stages: Sequence[str],
    inputs: Inputs,
    found: Findings,
    machines: Machines,
    *,
    base: PolicyVersion | None = None,
) -> tuple[ResourcePlan, list[str]]:
    """The resource plan, and lines about memory. `base`: the policy, if its version is known already.

    Raises:
        ClusterError: something does not fit the cluster or its memory.
        ModelError: engines on CPUs do not compute this model.
        ConfigError: a stage of the run folder was made with another configuration, a disk is too small, or flash attention or a
            model in 4 bits is asked for and cannot be.
    """
    made, steps = resource_plan(config, machines.resources, len(inputs.present)), variants(config)
    check_judges_fit(steps, made)
    for step in steps if "train" in stages else ():
        wanted, outline = config.model.vision_attention, found.model.outline
        vision_attention.check(wanted, outline, dtype=config.model.dtype, use_gpu=made.use_gpu, here=machines.here)
        packed = step.train.shared_prefix and not shared_prefix.obstacle(outline)
        sequence_parallel.check(outline, step.train.sequence_parallel, packed=packed)
        if machines.here:
            quantized.check(step.train)
    asks = any(recipes.build(step.recipe).asks_policy for step in steps) and "rollout" in stages and not made.engines.gpus
    if asks or ("evaluate" in stages and config.data.eval and not made.serve.bundle_gpus):
        check_on_cpu(found.model.config, config.model.dtype)
    run = RunFolder.at(config.run_dir)
    if any(run.root.glob(f"rounds/*/*/{name}") for name in (BEGUN, MANIFEST)):
        version = base or policy_version(config.model.path)
        Rounds(config=config, run=run, plan=made, inputs=inputs, base=version).accept(stages)
    memory: dict[str, None] = {}  # lines that steps share are said once
    for step in steps:
        memory |= dict.fromkeys(check_memory(step, made, found.model, machines, num_tokens=found.num_tokens, stages=stages))
        if machines.here:
            check_disk(step, found.model, stages)
    return made, list(memory)


def check_judges(config: RunConfig, steps: Sequence[RunConfig], *, ask_vllm: bool = True) -> None:
    """Raises `ModelError` for a judge whose model cannot judge, see `pipelines.checks.model.check_judge`."""
    judges = [("recipe.judge", recipes.build(step.recipe).judge) for step in steps]
    for key, judge in [*judges, ("evaluate.judge", config.evaluate.judge)]:
        if judge is not None:
            check_model.check_judge(judge, key, ask_vllm=ask_vllm)


def render(report: CheckReport) -> str:
    """The report as text for the console."""
    parts = [("configuration", report.config.rstrip().splitlines())]
    parts += [(name, list(getattr(report, name))) for name in ("resources", "data", "model", "tokens", "memory", "warnings")]
    return "\n\n".join("\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in parts if lines)


def _plan_lines(config: RunConfig, made: ResourcePlan, resources: ClusterResources) -> list[str]:
    def line(name: str, workers: Workers) -> str:
        gpus = f", {workers.gpus:g} GPU" if workers.gpus else ""
        number = workers.num if workers.fewest in (None, workers.num) else f"{workers.fewest} to {workers.num}"
        return f"{name}: {number} x ({workers.cpus:g} CPU{gpus})"

    serve = made.serve
    gpus = f", {serve.bundle_gpus:g} GPU" if serve.bundle_gpus else ""
    models = "one model at a time" if serve.in_turn else f"{serve.num_models} models"
    return [
        f"cluster: {resources.describe()} on {resources.num_nodes} node(s)",
        line("decoders", made.decoders),
        line("engines", made.engines),
        line("training workers", made.train),
        *overlap_lines(config, made),
        f"serving: {models} x {serve.min_replicas} to {serve.max_replicas} replicas x ({serve.server_cpus:g} CPU "
        f"+ {serve.num_devices} x ({serve.bundle_cpus:g} CPU{gpus}))",
    ]
