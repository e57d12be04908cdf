"""What `--dry-run` finds out before anything is started: does the config fit the data, the model, the context, the cluster?

    resource plan ─► data files ─► model folder ─► longest prompt + largest video against the context ─► memory

Starts no engine and no Ray, loads no weights. What cannot work raises a `VidalignError` of one sentence; what is merely worth
knowing is a line or a warning of the report.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from cluster.plan import ClusterResources, ResourcePlan, Workers, plan
from cluster.session import local_device_memory, local_resources
from pipelines import check_model
from vidalign import prompts
from vidalign.config.loading import dump_config
from vidalign.config.recipes import GivenRecipe, HoundRecipe, LeanpoRecipe, RrpoRecipe, SamplingSection
from vidalign.config.run import DataConfig, RunConfig
from vidalign.data.reading import read_examples, read_pairs
from vidalign.errors import ClusterError, ConfigError, DataError, VideoError
from vidalign.learning import objectives
from vidalign.learning.views import view_of
from vidalign.model import estimate, policy, rendering
from vidalign.types import Example
from vidalign.video.clip import Clip
from vidalign.video.decoding import content_hash, frame_indices
from vidalign.video.readers import target_size

MAX_PROBED_VIDEOS = 64
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The examples of a config, and which of their local videos exist."""

    train: list[Example]
    eval: list[Example]
    probe: list[Example]
    present: list[str]
    missing: list[str]

    @property
    def examples(self) -> list[Example]:
        return [*self.train, *self.eval, *self.probe]


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
    named = config.cluster.address or os.environ.get("RAY_ADDRESS")
    elsewhere = resources is None and named is not None and named != "local"
    made = plan(config, resources or local_resources(config.cluster))
    if resources is None and not elsewhere and device_memory is None:
        device_memory = local_device_memory(made.use_gpu)
    data, model, tokens, warnings = check_inputs(config, ask_vllm=ask_vllm)
    if elsewhere:
        warnings.append(f"planned for this machine, because a dry run does not connect to the cluster at {named}")
    memory = check_memory(config, made, model, device_memory) if model.shapes else []
    return CheckReport(
        config=dump_config(config),
        resources=tuple(_plan_lines(made, resources or local_resources(config.cluster))),
        data=tuple(_data_lines(config.data, data)),
        model=tuple(model.lines),
        tokens=tuple(tokens),
        memory=tuple(memory),
        warnings=tuple(warnings),
    )


def check_inputs(config: RunConfig, *, ask_vllm: bool = False) -> tuple[Data, check_model.ModelFacts, list[str], list[str]]:
    """What can be known of data, model and context without a cluster: both, lines about tokens, warnings.

    Raises:
        DataError, ModelError: the first thing that cannot work.
    """
    data = read_data(config.data)
    model = check_model.inspect(config.model, ask_vllm=ask_vllm)
    warnings = list(model.warnings)
    if data.missing:
        warnings.append(
            f"{len(data.missing):,} of {len(data.missing) + len(data.present):,} videos are missing and will be "
            f"quarantined, first {data.missing[0]}"
        )
    tokens = check_tokens(config, data, model, warnings) if model.processor is not None else []
    return data, model, tokens, warnings


def check_objective(config: RunConfig) -> None:
    """Raises `ConfigError` for an unknown objective or parameter, and for one that training or train.uncertainty cannot go with."""
    objective = objectives.build(config.objective.name, config.objective.params)
    view_of(objective)
    if config.train.uncertainty is not None and not objective.takes_doubt:
        fitting = [name for name, kind in objectives.OBJECTIVES.items() if kind.takes_doubt]
        raise ConfigError(
            f"train.uncertainty smooths labels, which objective.name={config.objective.name} does not have; choose one of "
            f"{', '.join(fitting)}, or set train.uncertainty to null"
        )


def render(report: CheckReport) -> str:
    """The report as text for the console."""
    parts = [("configuration", report.config.rstrip().splitlines())]
    parts += [(name, list(getattr(report, name))) for name in ("resources", "data", "model", "tokens", "memory", "warnings")]
    return "\n\n".join("\n".join([name, *(f"  {line}" for line in lines)]) for name, lines in parts if lines)


def read_data(config: DataConfig) -> Data:
    """Read all files; see which videos exist; refuse a video that is both learned from and tested on.

    Raises:
        DataError: malformed rows; a video in train and in eval or probe, by path or by content; no video exists at all.
    """
    files = {"train": config.train, "eval": config.eval, "probe": config.probe}
    limits = {"train": config.limit, "eval": config.eval_limit, "probe": None}
    splits = {
        name: read_examples(path, video_root=config.video_root, limit=limits[name]) if path else []
        for name, path in files.items()
    }
    videos = sorted({example.video for examples in splits.values() for example in examples})
    present = [video for video in videos if "://" in video or os.path.isfile(video)]
    missing = sorted(set(videos).difference(present))
    if not present:
        raise DataError(
            f"none of the {len(videos):,} videos exists, first {missing[0]}; set data.video_root to the folder that the "
            "'video' fields are relative to"
        )
    known = set(present)
    for name in ("eval", "probe"):
        refuse_shared_videos(name, *({e.video for e in splits[part]} & known for part in ("train", name)))
    return Data(**splits, present=present, missing=missing)


def refuse_shared_videos(name: str, train: set[str], held_out: set[str]) -> None:
    """Raises `DataError` when a held-out video is also trained on, under the same path or as a copy."""
    shared = sorted(train & held_out)
    if shared:
        raise DataError(
            f"data.{name} must share no video with data.train, but {len(shared):,} of its {len(held_out):,} videos are in both, "
            f"first {shared[0]}; remove them from one of the two files"
        )
    by_size: dict[int, list[str]] = {}
    for video in train:
        if "://" not in video:
            by_size.setdefault(os.path.getsize(video), []).append(video)
    digest = functools.cache(content_hash)  # only files of equal size are read
    for video in sorted(held_out):
        for other in by_size.get(os.path.getsize(video), []) if "://" not in video else []:
            if digest(video) == digest(other):
                raise DataError(
                    f"data.{name} must share no video with data.train, but {video} and {other} are copies of one file; "
                    "remove one of the two from its file"
                )


def check_tokens(config: RunConfig, data: Data, model: check_model.ModelFacts, warnings: list[str]) -> list[str]:
    """The longest prompt with the largest video must fit the context. Raises `ModelError` when it does not."""
    text, where, reply = longest_prompt(config, data, model.processor)
    shapes = probe_videos(config, data.present)
    if not shapes:
        warnings.append("no video could be opened to see its size, so its vision tokens are not checked")
        return [f"longest prompt: {text:,} tokens without its video ({where})"]
    costs = {size: vision_tokens(model, *size) for size in {shape[2:] for shape in shapes}}
    uri, num_frames, height, width = max(shapes, key=lambda shape: costs[shape[2:]](shape[1]))
    tokens_of = costs[height, width]
    frames_key = "video.num_frames" if config.video.fps is None else "video.max_frames"
    limits: dict = {
        "num_text_tokens": text,
        "max_new_tokens": reply,
        "max_model_len": config.model.max_model_len,
        "model_limit": estimate.position_limit(model.config),
    }
    needed = estimate.check_context(
        tokens_of, num_frames=num_frames, frames_key=frames_key, where=f"{where}, {uri}", **limits
    )
    if config.video.fps is not None and config.video.max_frames > num_frames:
        worst = tokens_of(config.video.max_frames) + text + reply
        if worst > config.model.max_model_len:
            fits = estimate.frames_that_fit(tokens_of, config.video.max_frames, config.model.max_model_len - text - reply)
            warnings.append(
                f"a video long enough for video.max_frames={config.video.max_frames} would need {worst:,} tokens of "
                f"model.max_model_len={config.model.max_model_len:,}; lower video.max_frames to {fits} to be safe"
            )
    return [
        f"largest video: {num_frames} frames of {height}x{width} pixels are {tokens_of(num_frames):,} vision tokens ({uri})",
        f"longest prompt: {text:,} tokens without its video ({where})",
        f"reply: at most {reply:,} tokens",
        f"context: {needed:,} of model.max_model_len={config.model.max_model_len:,} tokens",
        f"looked at {len(shapes):,} of {len(data.present):,} videos and at every prompt",
    ]


def longest_prompt(config: RunConfig, data: Data, processor: Any) -> tuple[int, str, int]:
    """(text tokens without the video, which example, reply tokens) of the largest sum over everything that will be asked.

    A reflection prompt quotes an earlier reply, which may be as long as `recipe.max_new_tokens`.
    """
    recipe, evaluate = config.recipe, config.evaluate
    length = recipe.max_new_tokens if isinstance(recipe, SamplingSection) else 0
    asked: list[tuple[str, Sequence[Example], str, int, int]] = [
        ("plain", data.train, recipe.plain_prompt, 0, length),
        ("evaluation", data.eval, recipe.plain_prompt, 0, evaluate.max_new_tokens),
        ("probe", data.probe, recipe.plain_prompt, 0, 0),
    ]
    match recipe:
        case LeanpoRecipe():
            asked.append(("hint", data.train, recipe.hint_prompt, 0, length))
            if recipe.num_turns > 1:
                asked.append(("reflection", data.train, recipe.reflect_prompt, length, length))
        case RrpoRecipe(rewrite="policy"):
            asked.append(("differences", data.train, recipe.differences_prompt, length, length))
            asked.append(("rewrite", data.train, recipe.rewrite_prompt, length, length))
        case HoundRecipe(captions="policy"):
            asked.append(("caption", data.train, recipe.caption_prompt, 0, length))
        case GivenRecipe():
            _, pairs = read_pairs(config.data.train, video_root=config.data.video_root, limit=config.data.limit)
            given = [
                dataclasses.replace(example, answer=max(pair.chosen, pair.rejected, key=len))
                for example, pair in zip(data.train, pairs, strict=True)
            ]
            asked.append(("given", given, recipe.plain_prompt, 0, 0))
    frame = _frame_tokens(processor)
    best = (0, "", 0)
    for kind, examples, template, quoted, reply in asked:
        texts = [prompts.fill(template, question=e.question, answer=e.answer) for e in examples]
        answers = _num_tokens(processor, [e.answer for e in examples])
        for example, length, answer in zip(examples, _num_tokens(processor, texts), answers, strict=True):
            after = max(reply, answer + 1)  # the ground truth is scored in the reply's place, with its end-of-turn token
            if frame + length + quoted + after > best[0] + best[2]:
                best = (frame + length + quoted, f"{kind} prompt of example {example.id}", after)
    return best


def _num_tokens(processor: Any, texts: list[str]) -> list[int]:
    if not texts:
        return []
    return [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def probe_videos(config: RunConfig, videos: Iterable[str]) -> list[tuple[str, int, int, int]]:
    """(uri, frames, height, width) after sampling and resizing, of the first videos whose header can be read.

    The decode stage judges the others; here a broken file is only passed over.
    """
    import av
    import av.error

    spec = config.video.frame_spec()
    found: list = []
    for video in (video for video in videos if "://" not in video):
        if len(found) == MAX_PROBED_VIDEOS:
            break
        try:
            with av.open(video) as container:
                stream = container.streams.video[0]
                fps = float(stream.average_rate or stream.guessed_rate or 25)
                seconds = float((container.duration or 0) / av.time_base)
                total = stream.frames or round(seconds * fps)
                height, width = target_size(stream.height, stream.width, spec)
        except (av.error.FFmpegError, IndexError, ValueError, VideoError, OSError):
            continue
        if total >= spec.min_frames and height and width:
            found.append((video, len(frame_indices(total, fps, spec)), height, width))
    return found


def vision_tokens(model: check_model.ModelFacts, height: int, width: int) -> Callable[[int], int]:
    """Vision tokens as a function of the number of frames: by formula for Qwen2-VL-like models, else by rendering."""
    cost = estimate.read_vision_cost(model.folder)
    if cost is None:
        return functools.cache(functools.partial(measure_tokens, model.processor, height, width))
    return lambda num_frames: cost.tokens(num_frames, height, width)


def measure_tokens(processor: Any, height: int, width: int, num_frames: int) -> int:
    """Vision tokens of black frames, counted in what the processor makes of them."""
    clip = Clip(
        frames=np.zeros((num_frames, height, width, 3), np.uint8),
        fps=1.0,
        total_num_frames=num_frames,
        duration=float(num_frames),
        indices=tuple(range(num_frames)),
    )
    return rendering.render_prompt(processor, "", clip).length - _frame_tokens(processor)


def _frame_tokens(processor: Any) -> int:
    """Tokens of the chat template around a prompt; its one video placeholder becomes the video and does not count."""
    return _num_tokens(processor, [rendering.prompt_text(processor, "")])[0] - 1


def check_memory(
    config: RunConfig, made: ResourcePlan, model: check_model.ModelFacts, device_memory: int | None
) -> list[str]:
    """Model states of training and of an engine. Raises `ClusterError` when training's states alone exceed the device."""
    train, dtype = config.train, config.model.dtype
    outline = policy.outline(str(model.folder), trust_remote_code=config.model.trust_remote_code)
    count = estimate.count_parameters(outline, train)
    states = estimate.train_memory(count, train, dtype)
    devices = int(made.engines.gpus) or 1
    engine = estimate.engine_memory(
        sum(math.prod(shape) for shape in model.shapes.values()),
        model.config,
        dtype=dtype,
        num_devices=devices,
        max_model_len=config.model.max_model_len,
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


def _data_lines(config: DataConfig, data: Data) -> list[str]:
    files = {"train": config.train, "eval": config.eval, "probe": config.probe}
    lines = []
    for name, path in files.items():
        examples: list[Example] = getattr(data, name)
        if path:
            videos = len({example.video for example in examples})
            lines.append(f"{name}: {len(examples):,} examples on {videos:,} videos ({pathlib.Path(path)})")
    return [*lines, f"videos: {len(data.present):,} present, {len(data.missing):,} missing"]
