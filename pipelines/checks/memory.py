"""What each phase of a run holds on a device, and whether it is there. Each has the device alone, but for phases that overlap."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.described import Machines
from cluster.plan import GPU_MEMORY_UTILIZATION
from cluster.resources import ResourcePlan, count
from pipelines.checks.learning import forward_tokens
from pipelines.checks.model import ModelFacts
from pipelines.checks.overlap import at_once
from vidalign import recipes
from vidalign.config.recipes import JudgeConfig
from vidalign.config.run import ModelConfig, RunConfig
from vidalign.errors import ClusterError, ModelError
from vidalign.learning import objectives
from vidalign.model import loading, memory, shared_prefix, training_memory
from vidalign.model.checkpoint import MAX_SHARD_BYTES
from vidalign.model.folder import model_folder, read_headers, weight_files

GIB = 2**30
CPU_ENGINE_CACHE = GIB  # key-value cache of an engine on CPUs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """What one phase holds on each device: `needed` of `share` of its memory. `ways_out` are the parts of a sentence.

    `for_more`: bytes of each further sequence at the same time, where memory that is left is used for them.
    """

    name: str
    needed: int
    what: str
    ways_out: Sequence[str]
    share: float = 1.0
    uses_gpu: bool = True
    for_more: int = 0

    def line(self, available: int | None) -> str:
        where = "each GPU" if self.uses_gpu else "the machine"
        room = f", of {gib(available * self.share)}" if available else ""
        more = ""
        if available and self.for_more and self.uses_gpu:
            more = f", room for {1 + int((available * self.share - self.needed) // self.for_more):,} at a time"
        return f"{self.name}: {where} holds {gib(self.needed)}{room}: {self.what}{more}"

    def check(self, available: int | None) -> None:
        """Raises `ClusterError` where it does not fit."""
        if available is None or self.needed <= available * self.share:
            return
        where = "a GPU" if self.uses_gpu else "the machine"
        share = "" if self.share == 1 else f", of which {self.share:g} is used"
        raise ClusterError(
            f"{self.name} holds {gib(self.needed)} ({self.what}), but {where} has {gib(available)}{share}; "
            f"{' or '.join(self.ways_out) or 'use a smaller model'}"
        )


def check_memory(
    config: RunConfig, made: ResourcePlan, model: ModelFacts, machines: Machines, *, num_tokens: int, stages: Sequence[str]
) -> list[str]:
    """Lines of what each phase of `stages` holds.

    Args:
        num_tokens: of the longest prompt with its video and reply; 0 where that is not known.

    Raises:
        ClusterError: the first phase that does not fit.
    """
    phases = [engine.phase() for engine in engines_of(config, made, model, stages)]
    if "train" in stages:
        place = 0 if not phases else len(phases) - phases[-1].name.startswith("evaluation")
        phases[place:place] = _training(config, made, model, num_tokens)
    phases += at_once(phases) if made.overlap else []
    lines = []
    for phase in phases:
        available = machines.gpu_memory if phase.uses_gpu else machines.host_memory
        phase.check(available)
        lines.append(phase.line(available))
    return [*lines, *(_host_lines(config, model, machines) if "train" in stages else [])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """A vLLM engine. `devices` share its weights; `copies` are on one machine without GPUs; `share` of a GPU is its own.

    `section` and `gpus_key` name the options that decide about it; `ways_out` are its own.
    """

    name: str
    num_parameters: int
    model_config: Any
    dtype: str
    max_model_len: int
    devices: int
    uses_gpu: bool
    share: float
    copies: int
    section: str
    gpus_key: str
    quantized: bool
    ways_out: Sequence[str] = ()

    def phase(self) -> Phase:
        """It must hold its weights and the key-value cache of one sequence; what is left takes more sequences at a time."""
        made = memory.engine_memory(
            self.num_parameters,
            self.model_config,
            dtype=self.dtype,
            num_devices=self.devices,
            max_model_len=self.max_model_len,
        )
        ways_out = list(self.ways_out)
        if self.dtype == "float32" and self.uses_gpu:
            ways_out.append(f"set {self.section}.dtype to bfloat16")
        if self.uses_gpu:
            ways_out.append(f"raise {self.gpus_key} to {2 * self.devices}")
        if made.kv_per_sequence > made.weights / 4:
            ways_out.append(f"lower {self.section}.max_model_len")
        weights = 0 if self.quantized else made.weights
        cache = made.kv_per_sequence if self.uses_gpu else max(CPU_ENGINE_CACHE, made.kv_per_sequence)
        return Phase(
            name=self.name,
            needed=self.copies * (weights + cache),
            what=f"{'quantized weights, not counted' if self.quantized else f'{gib(self.copies * weights)} of weights'}, and "
            f"{gib(made.kv_per_sequence)} of key-value cache for a sequence of {self.section}.max_model_len={self.max_model_len:,}",
            ways_out=ways_out,
            share=self.share if self.uses_gpu else 1.0,
            uses_gpu=self.uses_gpu,
            for_more=made.kv_per_sequence,
        )


def engines_of(config: RunConfig, made: ResourcePlan, model: ModelFacts, stages: Sequence[str]) -> list[Engine]:
    """The engines of a run, in the order of its stages."""
    policy = {
        "num_parameters": num_parameters(model.outline),
        "model_config": model.config,
        "section": "model",
    }
    recipe, serve, found = recipes.build(config.recipe), made.serve, []
    if "rollout" in stages and recipe.asks_policy:
        own = _own(config.model, config.rollout.engine_args, made.engines.gpus)
        copies = 1 if made.engines.gpus else made.engines.num
        found.append(Engine(name="rollout", gpus_key="rollout.gpus_per_engine", copies=copies, **own, **policy))
    if "rollout" in stages and recipe.judge is not None and recipe.judge.kind == "vllm":
        found += _judge(recipe.judge, on_gpu=made.engines.gpus > 0)
    if "evaluate" in stages and config.data.eval:
        on_gpu = serve.bundle_gpus > 0
        share = serve.gpu_memory_utilization or GPU_MEMORY_UTILIZATION
        own = _own(config.model, config.serve.engine_args, serve.num_devices * on_gpu, share)
        is_shared = 0 < serve.bundle_gpus < 1
        shared = f", {serve.num_models} models on one GPU" if is_shared else ""
        copies = 1 if on_gpu else serve.num_models * max(1, serve.min_replicas)
        ways_out = ("set evaluate.in_turn to null",) if is_shared else ()
        found.append(
            Engine(
                name=f"evaluation{shared}",
                gpus_key="serve.gpus_per_replica",
                copies=copies,
                **own,
                **policy,
                ways_out=ways_out,
            )
        )
    return found


def _own(
    section: ModelConfig | JudgeConfig, engine_args: Mapping[str, Any], gpus: float, share: float = GPU_MEMORY_UTILIZATION
) -> dict[str, Any]:
    """What engine arguments, which have the last word, leave of a section's options."""
    dtype = engine_args.get("dtype", section.dtype)
    return {
        "dtype": dtype if dtype in memory.BYTES else section.dtype,
        "max_model_len": int(engine_args.get("max_model_len", section.max_model_len)),
        "devices": int(engine_args.get("tensor_parallel_size", gpus)) or 1,
        "uses_gpu": gpus > 0,
        "share": float(engine_args.get("gpu_memory_utilization", share)),
        "quantized": "quantization" in engine_args,
    }


def _judge(judge: JudgeConfig, *, on_gpu: bool) -> list[Engine]:
    try:
        folder = model_folder(judge.model, weights=False)
        if not pathlib.Path(judge.model).expanduser().is_dir() and not any(folder.glob("*.safetensors")):
            return []  # vLLM fetches it; only then its size is known
        shapes = [shape for _, shape in read_headers(weight_files(folder)).values()]
        model_config = loading.read_config(str(folder))
    except ModelError as error:
        raise ModelError(f"recipe.judge.model: {error}") from error
    return [
        Engine(
            name="judge",
            num_parameters=sum(math.prod(shape) for shape in shapes),
            model_config=model_config,
            copies=1,
            section="recipe.judge",
            gpus_key="recipe.judge.num_gpus",
            **_own(judge, judge.engine_args, judge.num_gpus if on_gpu else 0),
        )
    ]


def num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _training(config: RunConfig, made: ResourcePlan, model: ModelFacts, num_tokens: int) -> list[Phase]:
    train, dtype, outline = config.train, config.model.dtype, model.outline
    acts = memory.activations(outline, dtype)
    on_device = 1 if made.use_gpu else made.train.num
    packed = train.shared_prefix and not shared_prefix.obstacle(outline)
    length = num_tokens or config.model.max_model_len
    tokens = forward_tokens(config, length, packed=packed)
    found = []
    takes_values = objectives.named(config.objective.name).needs_values
    if train.uncertainty is not None or takes_values:  # any other reference is computed by the training's ranks
        weights, held = num_parameters(outline) * memory.BYTES[dtype], acts.inference(tokens, tokens)
        found.append(
            Phase(
                name="token values" if takes_values else "reference",
                needed=on_device * (weights + held),
                what=f"{gib(weights)} of weights, and by estimate {gib(held)} of activations for {tokens:,} tokens",
                ways_out=[*(["set model.dtype=bfloat16"] if dtype == "float32" else []), "lower train.micro_batch_size"],
                uses_gpu=made.use_gpu,
            )
        )
    count_ = training_memory.count_parameters(outline, train)
    states = training_memory.train_memory(count_, train, dtype, on_gpu=made.use_gpu)
    trains_vision = train.train_vision_tower and train.lora is None
    own = -(-tokens // train.sequence_parallel)  # videos are computed by each rank
    held = acts.training(own, tokens, checkpointing=train.gradient_checkpointing, trains_vision=trains_vision)
    ways_out = []
    if train.lora is None:
        ways_out.append("set train.lora")
    elif train.lora.quantize is None and train.zero_stage < 3:
        ways_out.append("set train.lora.quantize to 4bit")
    if train.zero_stage < 3 and train.most_workers > 1:
        ways_out.append("raise train.zero_stage to 3")
    if made.use_gpu:
        ways_out.append("add train.num_workers with train.zero_stage=3")
    if held > states.total / 4:
        ways_out = [
            *([] if train.gradient_checkpointing else ["set train.gradient_checkpointing"]),
            *(["lower train.micro_batch_size"] if train.micro_batch_size > 1 else []),
            *ways_out,
            "take fewer or smaller frames",
        ]
    phase = Phase(
        name="training",
        needed=on_device * (states.peak(held) + (0 if made.use_gpu else states.host)),
        what=f"{count_.trainable:,} of {count_.total:,} parameters change in {dtype} with train.zero_stage={train.zero_stage} on "
        f"{count(train.fewest_workers, 'worker')}; each holds {gib(states.total)} = weights {gib(states.weights)}"
        f"{f' ({count_.quantized:,} of them in 4 bits)' if count_.quantized else ''} + gradients "
        f"{gib(states.gradients)} + optimizer {gib(states.optimizer)}, and by estimate {gib(held)} of activations for {tokens:,} "
        "tokens" + (f" and {gib(states.buffers)} of buffers" if states.buffers else "") + "; not all of it at the same time",
        ways_out=ways_out,
        uses_gpu=made.use_gpu,
    )
    return [*found, phase]


def _host_lines(config: RunConfig, model: ModelFacts, machines: Machines) -> list[str]:
    """What host memory and disks take."""
    weights = num_parameters(model.outline) * memory.BYTES[config.model.dtype]
    largest = max(parameter.numel() for parameter in model.outline.parameters()) * memory.BYTES[config.model.dtype]
    nodes = max(1, machines.resources.num_nodes)
    ranks = math.ceil(config.train.most_workers / nodes)
    counted = training_memory.count_parameters(model.outline, config.train)
    checkpoint = training_memory.checkpoint_bytes(counted, config.model.dtype)
    lora = config.train.lora
    whole = weights if lora is not None and lora.quantize is not None else 0  # into which the adapter is merged
    return [
        f"host memory: {count(ranks, 'rank')} of a node read {gib(ranks * weights)} of weights at the start of training, and the "
        f"export holds up to {gib(whole + min(weights, MAX_SHARD_BYTES) + largest)}",
        f"disk: each exported model takes {gib(weights)}, each checkpoint {gib(checkpoint)}, of which run_dir keeps "
        f"{config.train.num_checkpoints_kept}, and one more while that is written, until the export",
    ]


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def disk_needed(config: RunConfig, model: ModelFacts) -> int:
    """Bytes that a whole run surely has in run_dir at one time: exported models, and the checkpoints of a training."""
    weights = num_parameters(model.outline) * memory.BYTES[config.model.dtype]
    counted = training_memory.count_parameters(model.outline, config.train)
    checkpoint = training_memory.checkpoint_bytes(counted, config.model.dtype)
    rounds = config.rounds if config.train.keep_checkpoints else 1
    return config.rounds * weights + rounds * config.train.num_checkpoints_kept * checkpoint
