"""The configuration of a run: read from YAML, checked once, frozen. This module imports nothing heavy.

`load_config("align.yaml", ["train.learning_rate=1e-6"])` returns a `RunConfig`; every unknown key, value out of range and
contradiction is a `ConfigError` that names the key. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
import yaml

from vidalign import judging, prompts
from vidalign.errors import ConfigError
from vidalign.types import FrameSpec


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys fail and values cannot change after loading."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Section):
    """The policy to align: a local Hugging Face folder, or a hub name where a hub can be reached."""

    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = pydantic.Field(4096, ge=16)
    trust_remote_code: bool = False


class DataConfig(Section):
    """JSONL files of rows {"id", "video", "question", "answer", ["options", "category"]}.

    `video` is relative to `video_root`, which defaults to the folder of the JSONL file. `probe` rows are never trained on:
    their ground truth's likelihood is logged. `eval` may be left out: no evaluation is run then.
    """

    train: str
    eval: str | None = None
    probe: str | None = None
    video_root: str | None = None
    limit: int | None = pydantic.Field(None, ge=1)
    eval_limit: int | None = pydantic.Field(None, ge=1)


class VideoConfig(Section):
    """Frame sampling (see `vidalign.types.FrameSpec`) and how decoding is run."""

    num_frames: int | None = pydantic.Field(8, ge=1)
    fps: float | None = pydantic.Field(None, gt=0)
    max_frames: int = pydantic.Field(128, ge=1)
    min_frames: int = pydantic.Field(2, ge=1)
    height: int | None = pydantic.Field(None, ge=1)
    width: int | None = pydantic.Field(None, ge=1)
    max_pixels: int | None = pydantic.Field(None, ge=1)
    snap_to_keyframes: bool = False
    backend: Literal["pyav", "decord"] = "pyav"
    deadline_s: float = pydantic.Field(60.0, gt=0)
    num_decoders: int | None = pydantic.Field(None, ge=1)
    cache_dir: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_sampling_rule(self) -> VideoConfig:
        if (self.num_frames is None) == (self.fps is None):
            raise ValueError(
                f"exactly one of num_frames and fps is set, got num_frames={self.num_frames} and fps={self.fps}; "
                "set the other to null"
            )
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width go together, got height={self.height} and width={self.width}")
        if self.height is not None and self.max_pixels is not None:
            raise ValueError("height and width fix the size, so max_pixels must be null; set only one of the two ways")
        return self

    def frame_spec(self) -> FrameSpec:
        return FrameSpec(
            num_frames=self.num_frames,
            fps=self.fps,
            max_frames=self.max_frames,
            min_frames=self.min_frames,
            height=self.height,
            width=self.width,
            max_pixels=self.max_pixels,
            snap_to_keyframes=self.snap_to_keyframes,
        )


class AugmentConfig(Section):
    """How the video of a rejected response is degraded. Defaults: LeanPO, arXiv 2506.05260."""

    crop_scale: tuple[float, float] = (0.08, 0.3)
    brightness: float = pydantic.Field(0.4, ge=0)
    contrast: float = pydantic.Field(0.4, ge=0)
    saturation: float = pydantic.Field(0.2, ge=0)
    hue: float = pydantic.Field(0.1, ge=0, le=0.5)
    jitter_probability: float = pydantic.Field(0.8, ge=0, le=1)
    grayscale_probability: float = pydantic.Field(0.2, ge=0, le=1)
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_probability: float = pydantic.Field(0.5, ge=0, le=1)
    flip_probability: float = pydantic.Field(0.5, ge=0, le=1)
    num_frames: int = pydantic.Field(2, ge=2)

    @pydantic.model_validator(mode="after")
    def _ranges(self) -> AugmentConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale is [low, high] with 0 < low <= high <= 1 (shares of the area), got {[low, high]}")
        low, high = self.blur_sigma
        if not 0 <= low <= high:
            raise ValueError(f"blur_sigma is [low, high] with 0 <= low <= high (pixels), got {[low, high]}")
        return self


class JudgeConfig(Section):
    """The text model that scores responses 1-5 at temperature 0 (`actors/judge.py`).

    kind "vllm": `model` is a model folder, in an engine of its own with `num_gpus`, `dtype`, `max_model_len`. kind "openai":
    `model` is a name at the OpenAI-compatible endpoint `base_url`, whose key is in the environment variable `api_key_env`.
    """

    kind: Literal["openai", "vllm"]
    model: str
    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = pydantic.Field(16, ge=1)
    timeout_s: float = pydantic.Field(120.0, gt=0)
    max_retries: int = pydantic.Field(4, ge=0)
    num_gpus: int = pydantic.Field(1, ge=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = pydantic.Field(4096, ge=16)
    engine_args: dict[str, Any] = {}
    prompt: str = judging.PROMPT
    max_response_chars: int = pydantic.Field(2000, ge=1)
    max_new_tokens: int = pydantic.Field(256, ge=1)

    @pydantic.model_validator(mode="after")
    def _can_be_asked(self) -> JudgeConfig:
        if self.kind == "openai" and not self.base_url:
            raise ValueError("kind=openai needs base_url, for example http://127.0.0.1:8000/v1; or set kind=vllm")
        if missing := judging.missing_fields(self.prompt):
            raise ValueError(f"prompt must contain {', '.join(f'{{{name}}}' for name in missing)}, got {self.prompt[:80]!r}")
        return self


class PerturbConfig(Section):
    """How the video is perturbed to which RRPO's policy answers wrongly (arXiv 2504.12083): one square masks the centre of every
    frame, and frames change places: all of them ("global"), or only within `num_segments` equal parts ("local").
    """

    mask_area: tuple[float, float] | None = (0.25, 0.5)
    shuffle: Literal["none", "local", "global"] = "local"
    num_segments: int = pydantic.Field(4, ge=1)

    @pydantic.model_validator(mode="after")
    def _does_something(self) -> PerturbConfig:
        if self.mask_area is not None:
            low, high = self.mask_area
            if not 0 < low <= high < 1:
                raise ValueError(
                    f"mask_area is [low, high] with 0 < low <= high < 1 (shares of the area), got {[low, high]}"
                )
        elif self.shuffle == "none":
            raise ValueError("mask_area=null and shuffle=none leave the video as it is; set one of the two")
        return self


class LintConfig(Section):
    """What counts as an artefact in pairs (`vidalign/lint.py`), and what is dropped for it; by default all is only reported."""

    word_ratio: float = pydantic.Field(5.0, gt=1)
    min_count: int = pydantic.Field(8, ge=1)
    max_longer_share: float = pydantic.Field(0.75, ge=0.5, le=1)
    drop_tell_tales: bool = False
    max_length_ratio: float | None = pydantic.Field(None, ge=1)
    max_duplicates: int | None = pydantic.Field(None, ge=1)


class RecipeSection(Section):
    """What all recipes have: the prompt without hints, which training, scoring and evaluation use too."""

    PAIRING: ClassVar[frozenset[str]] = frozenset({"lint"})  # keys that decide about pairs and not about responses

    plain_prompt: str = prompts.PLAIN
    lint: LintConfig = LintConfig()  # type: ignore[call-arg]

    @pydantic.model_validator(mode="after")
    def _placeholders(self) -> Self:
        for key, names in prompts.PLACEHOLDERS.items():
            template = getattr(self, key, None)
            for name in names:
                if template is not None and name not in template:
                    raise ValueError(f"{key} must contain {name}, got {template!r}")
        return self


class SamplingSection(RecipeSection):
    """How many responses a recipe samples, and how."""

    num_candidates: int = pydantic.Field(4, ge=1)
    temperature: float = pydantic.Field(1.0, ge=0)
    top_p: float = pydantic.Field(0.9, gt=0, le=1)
    max_new_tokens: int = pydantic.Field(256, ge=1)


class LeanpoRecipe(SamplingSection):
    """LeanPO: hints and reflection for the chosen side, augmented videos for the rejected one. Defaults: arXiv 2506.05260.

    Without `hints` the first turn is asked like everything else, by `plain_prompt`: the paper's ablation. `negatives` "replayed"
    takes ground truths with one segment said again by the policy (`vidalign/replay.py`), and keeps up to `replay_buffer` of them
    for later rounds; "both" lets them compete with the augmented ones.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset({"pair_rule", "min_trust_gap", "replay_buffer", "lint"})

    name: Literal["leanpo"] = "leanpo"
    hints: bool = True
    num_turns: int = pydantic.Field(2, ge=1)
    rejected_top_p: float = pydantic.Field(1.0, gt=0, le=1)
    negatives: Literal["augmented", "replayed", "both"] = "augmented"
    replay_max_tokens: int = pydantic.Field(256, ge=1)
    replay_buffer: int = pydantic.Field(2000, ge=1)
    pair_rule: Literal["best_vs_worst", "hinted_vs_augmented"] = "best_vs_worst"
    min_trust_gap: float = pydantic.Field(0.1, ge=0, le=1)
    hint_prompt: str = prompts.HINT
    reflect_prompt: str = prompts.REFLECT
    augment: AugmentConfig = AugmentConfig()


class RrpoRecipe(SamplingSection):
    """RRPO: wrong answers to a perturbed video against the ground truth, differing in marked phrases. Source: arXiv 2504.12083.

    A reply is wrong by its trust (at most `max_trust`) or by the judge (less than `threshold`). `rewrite` "none" takes the wrong
    reply as it is; "policy" and "judge" have that model list what the reply gets wrong and swap just that into the ground
    truth, and drop a rewrite that differs anywhere else.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset({"wrong_by", "threshold", "judge", "lint"})

    name: Literal["rrpo"] = "rrpo"
    perturb: PerturbConfig = PerturbConfig()  # type: ignore[call-arg]
    wrong_by: Literal["trust", "judge"] = "trust"
    max_trust: float = pydantic.Field(0.999, ge=0, lt=1)
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    rewrite: Literal["none", "policy", "judge"] = "none"
    differences_prompt: str = prompts.DIFFERENCES
    rewrite_prompt: str = prompts.REWRITE
    judge: JudgeConfig | None = None

    @pydantic.model_validator(mode="after")
    def _judge_is_there_and_asked(self) -> RrpoRecipe:
        if "judge" in (self.wrong_by, self.rewrite) and self.judge is None:
            raise ValueError(
                f"wrong_by={self.wrong_by} and rewrite={self.rewrite} need recipe.judge, a text model (kind, model); "
                "or set wrong_by to trust and rewrite to policy or none"
            )
        if "judge" not in (self.wrong_by, self.rewrite) and self.judge is not None:
            raise ValueError("recipe.judge is set but nothing asks it; set wrong_by or rewrite to judge, or remove it")
        if self.wrong_by == "judge" and self.rewrite == "policy":
            raise ValueError(
                "wrong_by=judge is decided after the policy's rollout, too late for rewrite=policy; set rewrite to judge or none"
            )
        return self


class HoundRecipe(SamplingSection):
    """LLaVA-Hound: the policy's own samples, scored 1-5 by a judge that reads a caption for the video (arXiv 2404.01258).

    Captions come from the data rows ("data": field `caption`) or from the policy ("policy"). The chosen response scores at
    least `threshold`, the rejected one less, and they are `min_score_gap` apart.
    """

    PAIRING: ClassVar[frozenset[str]] = frozenset({"judge", "threshold", "min_score_gap", "lint"})

    name: Literal["hound"] = "hound"
    top_p: float = pydantic.Field(0.95, gt=0, le=1)
    captions: Literal["data", "policy"] = "data"
    caption_prompt: str = prompts.CAPTION
    threshold: float = pydantic.Field(3.0, gt=1, le=5)
    min_score_gap: float = pydantic.Field(1.0, gt=0, le=4)
    judge: JudgeConfig


class GivenRecipe(RecipeSection):
    """No rollout: data.train already holds pairs (rows with chosen and rejected), or examples for objective sft."""

    name: Literal["given"] = "given"


RECIPES: dict[str, type[RecipeSection]] = {
    "leanpo": LeanpoRecipe,
    "rrpo": RrpoRecipe,
    "hound": HoundRecipe,
    "given": GivenRecipe,
}
RecipeConfig = Annotated[
    Annotated[LeanpoRecipe, pydantic.Tag("leanpo")]
    | Annotated[RrpoRecipe, pydantic.Tag("rrpo")]
    | Annotated[HoundRecipe, pydantic.Tag("hound")]
    | Annotated[GivenRecipe, pydantic.Tag("given")],
    pydantic.Discriminator(lambda value: value.get("name", "leanpo") if isinstance(value, dict) else value.name),
]


class RolloutConfig(Section):
    """The vLLM engines that generate. `engine_args` go to `vllm.LLM` as they are."""

    num_engines: int | None = pydantic.Field(None, ge=1)
    gpus_per_engine: int = pydantic.Field(1, ge=0)
    batch_size: int = pydantic.Field(64, ge=1)
    engine_args: dict[str, Any] = {}


class ObjectiveConfig(Section):
    """The loss (`vidalign/objectives/`). `params` are the keyword arguments of the objective's dataclass."""

    name: str = "leanpo"
    params: dict[str, float | int | bool | str] = {}


class LoraConfig(Section):
    """Low-rank adapters on the language model's linear layers instead of full fine-tuning (peft)."""

    rank: int = pydantic.Field(128, ge=1)
    alpha: int = pydantic.Field(256, ge=1)
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)


class UncertaintyConfig(Section):
    """Label smoothing of each pair by its doubt (`vidalign/uncertainty.py`), after UPO. `max_smoothing` is that of the most
    doubtful; `drop_disagreeing` leaves out pairs whose order the heads vote against.
    """

    num_passes: int = pydantic.Field(10, ge=2)
    dropout: float = pydantic.Field(0.1, gt=0, lt=1)
    max_smoothing: float = pydantic.Field(0.4, ge=0, lt=0.5)
    drop_disagreeing: bool = True


class TrainConfig(Section):
    """The DeepSpeed job. `batch_size` counts pairs per optimizer step over all workers.

    `shared_prefix` computes prompt and video of a pair once for both responses, where the architecture can.
    """

    num_workers: int = pydantic.Field(1, ge=1)
    use_gpu: bool | None = None
    learning_rate: float = pydantic.Field(5e-7, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = pydantic.Field(0.1, ge=0, lt=1)
    num_epochs: int = pydantic.Field(1, ge=1)
    batch_size: int = pydantic.Field(16, ge=1)
    micro_batch_size: int = pydantic.Field(1, ge=1)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    max_grad_norm: float = pydantic.Field(1.0, gt=0)
    zero_stage: int = pydantic.Field(2, ge=0, le=3)
    gradient_checkpointing: bool = False
    shared_prefix: bool = True
    train_vision_tower: bool = False
    train_projector: bool = False
    lora: LoraConfig | None = None
    uncertainty: UncertaintyConfig | None = None
    log_every: int = pydantic.Field(5, ge=1)
    num_monitored: int = pydantic.Field(64, ge=1)
    checkpoint_every: int = pydantic.Field(50, ge=1)
    num_checkpoints_kept: int = pydantic.Field(2, ge=1)
    max_failures: int = pydantic.Field(2, ge=-1)

    @pydantic.model_validator(mode="after")
    def _accumulation_is_whole(self) -> TrainConfig:
        per_step = self.micro_batch_size * self.num_workers
        if self.batch_size % per_step:
            raise ValueError(
                f"batch_size must be a multiple of micro_batch_size x num_workers, got batch_size={self.batch_size} and "
                f"{self.micro_batch_size} x {self.num_workers} = {per_step}; "
                f"set batch_size to {max(1, self.batch_size // per_step) * per_step} or lower micro_batch_size"
            )
        return self

    @property
    def accumulation_steps(self) -> int:
        return self.batch_size // (self.micro_batch_size * self.num_workers)


class ServeConfig(Section):
    """The Ray Serve endpoint. `media_root` is the one folder from which `file:` video urls are served."""

    host: str = "127.0.0.1"
    port: int = pydantic.Field(8000, ge=1, le=65535)
    min_replicas: int = pydantic.Field(1, ge=0)
    max_replicas: int = pydantic.Field(1, ge=1)
    gpus_per_replica: int = pydantic.Field(1, ge=0)
    media_root: str | None = None
    engine_args: dict[str, Any] = {}
    start_timeout_s: float = pydantic.Field(900.0, gt=0)


class EvaluateConfig(Section):
    """Evaluation through the HTTP endpoint. `blind` asks the base the same questions on noise videos."""

    concurrency: int = pydantic.Field(16, ge=1)
    max_new_tokens: int = pydantic.Field(256, ge=1)
    blind: bool = True
    request_timeout_s: float = pydantic.Field(120.0, gt=0)


class ClusterConfig(Section):
    """Where Ray runs. `address` null starts or joins a local Ray, "local" starts one, "auto" demands a running cluster.

    `max_num_cpus` and `max_num_gpus` say what an autoscaling cluster may grow to; null: what the launcher's config on the
    head says, else what is there now. `num_cpus` are the logical CPUs of a Ray started on this machine.
    """

    address: str | None = None
    num_cpus: int | None = pydantic.Field(None, ge=1)
    max_num_cpus: int | None = pydantic.Field(None, ge=1)
    max_num_gpus: int | None = pydantic.Field(None, ge=0)


class RunConfig(Section):
    """Everything one run needs. Stored, resolved, as `config.yaml` in the run folder."""

    run_dir: str
    seed: int = pydantic.Field(0, ge=0)
    rounds: int = pydantic.Field(1, ge=1)
    model: ModelConfig
    data: DataConfig
    video: VideoConfig = VideoConfig()  # type: ignore[call-arg]
    recipe: RecipeConfig = LeanpoRecipe()  # type: ignore[call-arg]
    rollout: RolloutConfig = RolloutConfig()  # type: ignore[call-arg]
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()  # type: ignore[call-arg]
    serve: ServeConfig = ServeConfig()  # type: ignore[call-arg]
    evaluate: EvaluateConfig = EvaluateConfig()  # type: ignore[call-arg]
    cluster: ClusterConfig = ClusterConfig()  # type: ignore[call-arg]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads an unquoted 1e-6 as a string (it wants 1.0e-6); people write 1e-6."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def load_config(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML), and check everything.

    Raises:
        ConfigError: missing or malformed file, unknown key (with the nearest known one), wrong value, conflict.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file at {path}; see configs/ and examples/shapes/align.yaml for ones to start from")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections (model, data, ...), got {type(raw).__name__}")
    return parse_config(raw, overrides, source=str(path))


def parse_config(raw: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Check an already parsed mapping, after applying overrides to it. Raises `ConfigError` naming the offending keys."""
    for override in overrides:
        _apply_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(item) for item in error.errors())) from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML; `load_config` of it gives an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, sep, text = override.partition("=")
    if not sep or not dotted:
        raise ConfigError(f"an override has the form section.key=value, got {override!r}")
    node = raw
    *parents, last = dotted.split(".")
    for name in parents:
        child = node.setdefault(name, {})
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {name} holds a value, not a section")
        node = child
    try:
        node[last] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from error


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    if item["type"] == "union_tag_invalid":
        return f"recipe.name={item['ctx']['tag']!r} is no recipe; choose one of {', '.join(RECIPES)}"
    kind: type[Section] | None = None
    if location[0] == "recipe" and len(location) > 1:
        kind = RECIPES[location.pop(1)]  # the recipe's name is not part of the key
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], kind)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key}; {hint}"
    if item["type"] == "missing":
        return f"{key} is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={item['input']!r}: {message[:1].lower()}{message[1:]}"


def _known_keys(location: list[str], recipe: type[Section] | None) -> list[str]:
    model: Any = RunConfig
    for name in location:
        annotation = model.model_fields[name].annotation
        options = [recipe, annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
        recipe = None
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
