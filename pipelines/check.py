"""What `--dry-run` finds out before anything is started: does the config fit the data, the model, the context, the cluster?

    resource plan ─► data files ─► model folder ─► longest prompt + largest video against the context ─► memory

Starts no engine and no Ray, loads no weights. What cannot work raises a `VidalignError` of one sentence; what is merely worth
knowing is a line or a warning of the report.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence

from cluster.resources import ClusterResources, ResourcePlan, Workers
from cluster.session import local_device_memory, local_resources
from pipelines import check_model
from pipelines.check_context import check_tokens, prompts_asked
from pipelines.check_shapes import check_shapes, check_training
from pipelines.check_texts import check_texts
from pipelines.inputs import Inputs, read_inputs
from pipelines.rounds import resource_plan
from vidalign import recipes
from vidalign.config.loading import dump_config
from vidalign.config.run import DataConfig, ModelConfig, ObjectiveConfig, RunConfig, TrainConfig
from vidalign.errors import ClusterError, ConfigError
from vidalign.learning import objectives
from vidalign.learning.views import view_of
from vidalign.model import estimate, policy
from vidalign.model.turns import turns_of
from vidalign.types import Example

GIB = 2**30


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


def check(
    config: RunConfig,
    *,
    resources: ClusterResources | None = None,
    device_memory: int | None = None,
    ask_vllm: bool = True,
) -> CheckReport:
    """Check everything that can be known without starting anything.

    Args:
        resources: the cluster to plan for; None: this machine, and its own memory.
        device_memory: bytes of one GPU (or of the machine, on CPUs) against which training is checked; None: not checked.
        ask_vllm: also ask vLLM whether it serves the architecture, which costs the seconds of importing it.

    Raises:
        VidalignError: the first thing that cannot work.
    """
    check_objective(config.objective, config.train)
    check_judges(config)
    named = config.cluster.address or os.environ.get("RAY_ADDRESS")
    elsewhere = resources is None and named is not None and named != "local"
    made = resource_plan(config, resources or local_resources(config.cluster))
    if resources is None and not elsewhere and device_memory is None:
        device_memory = local_device_memory(made.use_gpu)
    inputs = read_inputs(config.data, config.recipe)
    recipes.build(config.recipe).check_data(inputs.train, source=config.data.train)
    model, tokens, warnings = check_inputs(config, inputs, ask_vllm=ask_vllm)
    if elsewhere:
        warnings.append(f"planned for this machine, because a dry run does not connect to the cluster at {named}")
    memory = check_memory(config.model, config.train, made, model, device_memory) if model.shapes else []
    return CheckReport(
        config=dump_config(config),
        resources=tuple(_plan_lines(made, resources or local_resources(config.cluster))),
        data=tuple(_data_lines(config.data, inputs)),
        model=tuple(model.lines),
        tokens=tuple(tokens),
        memory=tuple(memory),
        warnings=tuple(warnings),
    )


def check_inputs(
    config: RunConfig, inputs: Inputs, *, ask_vllm: bool = False
) -> tuple[check_model.ModelFacts, list[str], list[str]]:
    """What can be known of model and context without a cluster: facts of the model, lines about tokens, warnings.

    Raises:
        VidalignError: the first thing that cannot work.
    """
    model = check_model.inspect(config.model, ask_vllm=ask_vllm)
    warnings = list(model.warnings)
    if inputs.missing:
        warnings.append(
            f"{len(inputs.missing):,} of {len(inputs.missing) + len(inputs.present):,} videos are missing and will be "
            f"quarantined, first {inputs.missing[0]}"
        )
    tokens: list[str] = []
    if model.processor is not None:
        check_texts(inputs, config.recipe, turns_of(model.processor).special)
        asked = prompts_asked(inputs, recipes.build(config.recipe), config.evaluate)
        plain = {name for example in inputs.examples if example.context.is_plain for name in example.context.videos}
        if plain:
            videos = [video for video in inputs.present if video in plain]
            tokens, more = check_tokens(asked, videos, config.video, model, config.model.max_model_len)
            warnings += more
        lines, more = check_shapes(asked, config.video, model, config.model.max_model_len)
        tokens, warnings = tokens + lines, warnings + more
    check_training(config.train, [*(row.example for row in inputs.train), *inputs.probe])
    return model, tokens, warnings


def check_objective(config: ObjectiveConfig, train: TrainConfig) -> None:
    """Raises `ConfigError` for an unknown objective or parameter, and for one that does not go with train.uncertainty."""
    objective = objectives.build(config.name, config.params)
    view_of(objective)
    if train.uncertainty is not None and not objective.takes_doubt:
        fitting = [name for name, kind in objectives.OBJECTIVES.items() if kind.takes_doubt]
        raise ConfigError(
            f"train.uncertainty smooths labels, which objective.name={config.name} does not have; choose one of "
            f"{', '.join(fitting)}, or set train.uncertainty to null"
        )


def check_judges(config: RunConfig) -> None:
    """Raises `ModelError` for a judge whose model folder is not there."""
    for key, judge in (("recipe.judge", recipes.build(config.recipe).judge), ("evaluate.judge", config.evaluate.judge)):
        if judge is not None:
            check_model.check_judge(judge, key)


def render(report: CheckReport) -> str:
    """The report as text for the console."""
    parts = [("configuration", report.config.rstrip().splitlines())]
    parts += [(name, list(getattr(report, name))) for name in ("resources", "data", "model", "tokens", "memory", "warnings")]
    return "\n\n".join("\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in parts if lines)


def check_memory(
    config: ModelConfig, train: TrainConfig, made: ResourcePlan, model: check_model.ModelFacts, device_memory: int | None
) -> list[str]:
    """Model states of training and of an engine. Raises `ClusterError` when training's states alone exceed the device."""
    dtype = config.dtype
    outline = policy.outline(str(model.folder), trust_remote_code=config.trust_remote_code)
    count = estimate.count_parameters(outline, train)
    states = estimate.train_memory(count, train, dtype)
    devices = int(made.engines.gpus) or 1
    engine = estimate.engine_memory(
        sum(math.prod(shape) for shape in model.shapes.values()),
        model.config,
        dtype=dtype,
        num_devices=devices,
        max_model_len=config.max_model_len,
    )
    on_device = states.total * (1 if made.use_gpu else train.num_workers)
    if device_memory is not None and on_device > device_memory:
        ways_out = ["set train.lora"] if train.lora is None else []
        if train.zero_stage < 3 and train.num_workers > 1:
            ways_out.append("raise train.zero_stage to 3")
        if made.use_gpu:
            ways_out.append("add train.num_workers with train.zero_stage=3")
        raise ClusterError(
            f"training {count.trainable:,} of {count.total:,} parameters in {dtype} with train.zero_stage={train.zero_stage} "
            f"on {train.num_workers} worker(s) holds {_gib(on_device)} before activations but "
            f"{'a GPU' if made.use_gpu else 'the machine'} has {_gib(device_memory)}; {' or '.join(ways_out) or 'use a smaller model'}"
        )
    return [
        f"training: {count.trainable:,} of {count.total:,} parameters change; each worker holds {_gib(states.total)} = weights "
        f"{_gib(states.weights)} + gradients {_gib(states.gradients)} + optimizer {_gib(states.optimizer)}, before activations",
        f"generation: each {'GPU of an' if devices > 1 else ''} engine holds {_gib(engine.weights)} of weights, and "
        f"{_gib(engine.kv_per_sequence)} of key-value cache for a sequence of model.max_model_len".replace("  ", " "),
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _plan_lines(made: ResourcePlan, resources: ClusterResources) -> list[str]:
    def line(name: str, workers: Workers) -> str:
        gpus = f", {workers.gpus:g} GPU" if workers.gpus else ""
        return f"{name}: {workers.num} x ({workers.cpus:g} CPU{gpus})"

    serve = made.serve
    gpus = f", {serve.bundle_gpus:g} GPU" if serve.bundle_gpus else ""
    return [
        f"cluster: {resources.describe()} on {resources.num_nodes} node(s)",
        line("decoders", made.decoders),
        line("engines", made.engines),
        line("training workers", made.train),
        f"serving: {serve.num_models} models x {serve.min_replicas} to {serve.max_replicas} replicas x ({serve.server_cpus:g} CPU "
        f"+ {serve.num_devices} x ({serve.bundle_cpus:g} CPU{gpus}))",
    ]


def _data_lines(config: DataConfig, inputs: Inputs) -> list[str]:
    splits = {
        "train": (config.train, [row.example for row in inputs.train]),
        "eval": (config.eval, inputs.eval),
        "probe": (config.probe, inputs.probe),
    }
    lines = [
        f"{name}: {len(examples):,} examples on {_num_shown(examples):,} videos ({pathlib.Path(path)})"
        for name, (path, examples) in splits.items()
        if path
    ]
    return [*lines, f"videos: {len(inputs.present):,} present, {len(inputs.missing):,} missing"]


def _num_shown(examples: Sequence[Example]) -> int:
    return len({name for example in examples for name in example.context.visuals})
