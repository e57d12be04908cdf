"""The configuration of a run, section by section: checked once, then frozen. This module imports nothing heavy.

`vidalign.config.loading` reads it from YAML. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import pydantic

from vidalign.config.judging import ScoringSection
from vidalign.config.recipes import LeanpoRecipe, RecipeConfig
from vidalign.config.section import Section
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec


class ModelConfig(Section):
    """The policy to align: a local Hugging Face folder, or a hub name where a hub can be reached."""

    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = pydantic.Field(4096, ge=16)
    trust_remote_code: bool = False


class DataConfig(Section):
    """Files of rows {"id", "video", "question", "answer", ["options", "category", "caption", …]}; `vidalign.data.source` reads them.

    `video` is relative to `video_root`, which defaults to the folder of the file. `probe` rows are never trained on; the
    likelihood of their ground truth is logged. Without `eval`, no evaluation is run.
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
    total_pixels: int | None = pydantic.Field(None, ge=1)
    snap_to_keyframes: bool = False
    square_pixels: bool = True
    hdr_to_sdr: bool = True
    max_duration_s: float = pydantic.Field(FrameSpec.max_duration_s, gt=0)
    max_pixels_decoded: int = pydantic.Field(FrameSpec.max_pixels_decoded, ge=1)
    backend: Backend = DEFAULT_BACKEND
    deadline_s: float = pydantic.Field(60.0, gt=0)
    num_decoders: int | None = pydantic.Field(None, ge=1)
    cache_dir: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_sampling_rule(self) -> VideoConfig:
        if (self.num_frames is None) == (self.fps is None):
            raise ValueError(
                f"exactly one of num_frames and fps must be set, got num_frames={self.num_frames} and fps={self.fps}; "
                "set the other to null"
            )
        if (self.height is None) != (self.width is None):
            raise ValueError(
                f"height and width go together, got height={self.height} and width={self.width}; set both, or set both to null"
            )
        for name in ("max_pixels", "total_pixels"):
            if self.height is not None and getattr(self, name) is not None:
                raise ValueError(f"height and width fix the size, so {name} must be null; set height and width, or {name}")
        return self

    def frame_spec(self) -> FrameSpec:
        """The part of this section that decides which frames are taken, and at which size."""
        return FrameSpec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(FrameSpec)})


class RolloutConfig(Section):
    """The vLLM engines that generate responses. `engine_args` are passed to `vllm.LLM` unchanged."""

    num_engines: int | None = pydantic.Field(None, ge=1)
    gpus_per_engine: int = pydantic.Field(1, ge=0)
    batch_size: int = pydantic.Field(64, ge=1)
    engine_args: dict[str, Any] = {}


class ObjectiveConfig(Section):
    """The loss (`vidalign/learning/objectives/`). `params` are the keyword arguments of the objective's dataclass."""

    name: str = "leanpo"
    params: dict[str, float | int | bool | str] = {}


class LoraConfig(Section):
    """Low-rank adapters on the language model's linear layers instead of full fine-tuning (peft)."""

    rank: int = pydantic.Field(128, ge=1)
    alpha: int = pydantic.Field(256, ge=1)
    dropout: float = pydantic.Field(0.0, ge=0, lt=1)


class UncertaintyConfig(Section):
    """Label smoothing of each pair by its doubt (`vidalign/learning/uncertainty.py`), after UPO.

    A pair's smoothing is the estimated probability that its order is wrong, at most `max_smoothing`; `drop_disagreeing` leaves out
    pairs whose order the heads vote against. `sampled_share` is the share of the pairs left that is drawn for training, half of it
    by certainty and half by doubt; null takes all of them.
    """

    num_passes: int = pydantic.Field(10, ge=2)
    dropout: float = pydantic.Field(0.1, gt=0, lt=1)
    max_smoothing: float = pydantic.Field(0.4, ge=0, lt=0.5)
    drop_disagreeing: bool = True
    sampled_share: float | None = pydantic.Field(None, gt=0, le=1)


class TrainConfig(Section):
    """The DeepSpeed job. `batch_size` counts pairs per optimizer step over all workers.

    A forward pass takes `micro_batch_size` pairs or, with `tokens_per_micro_batch`, as many as fit into that many tokens (a
    longer pair goes alone). `shared_prefix` computes the prompt and video of a pair once for both responses and lays the pairs of
    a forward pass end to end without padding, where the architecture allows it. `cache_vision_features` keeps what a frozen
    vision tower computes for each video on disk, so that the tower runs once per video and not once per epoch or round.
    `cache_dir` is where these features and the reference's outputs are kept, by content; null means the run's folder.
    `float32_head` computes logits in float32 in a model of another type: in rollouts, for the reference and in training.
    """

    LATER: ClassVar[frozenset[str]] = frozenset({"float32_head"})

    NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {
            "num_workers",
            "use_gpu",
            "micro_batch_size",
            "tokens_per_micro_batch",
            "zero_stage",
            "gradient_checkpointing",
            "shared_prefix",
            "cache_vision_features",
            "cache_dir",
            "log_every",
            "num_monitored",
            "checkpoint_every",
            "num_checkpoints_kept",
            "max_failures",
        }
    )

    num_workers: int = pydantic.Field(1, ge=1)
    use_gpu: bool | None = None
    learning_rate: float = pydantic.Field(5e-7, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = pydantic.Field(0.1, ge=0, lt=1)
    num_epochs: int = pydantic.Field(1, ge=1)
    batch_size: int = pydantic.Field(16, ge=1)
    micro_batch_size: int = pydantic.Field(1, ge=1)
    tokens_per_micro_batch: int | None = pydantic.Field(None, ge=1)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    max_grad_norm: float = pydantic.Field(1.0, gt=0)
    zero_stage: int = pydantic.Field(2, ge=0, le=3)
    gradient_checkpointing: bool = False
    shared_prefix: bool = True
    cache_vision_features: bool = False
    cache_dir: str | None = None
    float32_head: bool = False
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

    @pydantic.model_validator(mode="after")
    def _cached_features_are_frozen(self) -> TrainConfig:
        if self.cache_vision_features and (self.train_vision_tower or self.train_projector) and self.lora is None:
            raise ValueError(
                "cache_vision_features needs a frozen vision tower and projector; set train_vision_tower and train_projector to "
                "false, or cache_vision_features to false"
            )
        return self


class ServeConfig(Section):
    """The Ray Serve endpoint. `media_root` is the only folder from which `file:` video urls are served."""

    host: str = "127.0.0.1"
    port: int = pydantic.Field(8000, ge=1, le=65535)
    min_replicas: int = pydantic.Field(1, ge=0)
    max_replicas: int = pydantic.Field(1, ge=1)
    gpus_per_replica: int = pydantic.Field(1, ge=0)
    media_root: str | None = None
    engine_args: dict[str, Any] = {}
    start_timeout_s: float = pydantic.Field(900.0, gt=0)


class EvaluateConfig(ScoringSection):
    """Evaluation through the HTTP endpoint, and who says which answers are right (`ScoringSection`).

    `blind` asks the base model the same questions about videos of noise.
    """

    # How answers are scored does not change them; the stage that scores records it.
    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"concurrency", "request_timeout_s", *ScoringSection.model_fields})

    concurrency: int = pydantic.Field(16, ge=1)
    max_new_tokens: int = pydantic.Field(256, ge=1)
    blind: bool = True
    request_timeout_s: float = pydantic.Field(120.0, gt=0)


class ClusterConfig(Section):
    """Where Ray runs. `address` null starts or joins a local Ray, "local" starts one, "auto" demands a running cluster.

    `max_num_cpus` and `max_num_gpus` say how far an autoscaling cluster may grow; null means what the launcher's config on the
    head node says, or else what the cluster has now. `num_cpus` is the number of logical CPUs of a Ray started on this machine.
    """

    address: str | None = None
    num_cpus: int | None = pydantic.Field(None, ge=1)
    max_num_cpus: int | None = pydantic.Field(None, ge=1)
    max_num_gpus: int | None = pydantic.Field(None, ge=0)


class RunConfig(Section):
    """Everything that one run needs. Stored in the run folder as `config.yaml`, with all defaults filled in."""

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


class ServingConfig(Section):
    """What `vidalign serve` needs: these sections of a run, or the defaults for a checkpoint folder."""

    model: ModelConfig
    video: VideoConfig = VideoConfig()  # type: ignore[call-arg]
    serve: ServeConfig = ServeConfig()  # type: ignore[call-arg]
    cluster: ClusterConfig = ClusterConfig()  # type: ignore[call-arg]
