"""The configuration of a run, section by section: checked once, then frozen. This module imports nothing heavy.

`vidalign.config.loading` reads it from YAML. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import pydantic

from vidalign.config.judging import ScoringSection
from vidalign.config.recipes import LeanpoRecipe, RecipeConfig
from vidalign.config.section import PathText, Section
from vidalign.config.training import TrainConfig
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec


class ModelConfig(Section):
    """The policy to align: a local Hugging Face folder, or a hub name where a hub can be reached.

    `vision_attention` is how training computes a vision tower that attends in windows (`vidalign/model/vision_attention.py`).
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"vision_attention"})
    LATER: ClassVar[frozenset[str]] = frozenset({"vision_attention"})

    path: PathText
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    max_model_len: int = pydantic.Field(4096, ge=16)
    trust_remote_code: bool = False
    vision_attention: Literal["auto", "flash_attn", "sdpa"] = "auto"


class DataConfig(Section):
    """Files of rows {"id", "video", "question", "answer", ["options", "category", "caption", …]}; `vidalign.data.source` reads them.

    `video` is relative to `video_root`, which defaults to the folder of the file. `probe` rows are never trained on; the
    likelihood of their ground truth is logged. Without `eval`, no evaluation is run.
    """

    train: PathText
    eval: PathText | None = None
    probe: PathText | None = None
    video_root: PathText | None = None
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
    cache_dir: PathText | None = None

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


class ServeConfig(Section):
    """The Ray Serve endpoint. `media_root` is the only folder from which `file:` video urls are served."""

    host: str = "127.0.0.1"
    port: int = pydantic.Field(8000, ge=1, le=65535)
    min_replicas: int = pydantic.Field(1, ge=0)
    max_replicas: int = pydantic.Field(1, ge=1)
    gpus_per_replica: int = pydantic.Field(1, ge=0)
    media_root: PathText | None = None
    engine_args: dict[str, Any] = {}
    start_timeout_s: float = pydantic.Field(900.0, gt=0)


class EvaluateConfig(ScoringSection):
    """Evaluation through the HTTP endpoint, and who says which answers are right (`ScoringSection`).

    `blind` asks the base model the same questions about videos of noise. `concurrency` counts requests in flight at a replica.
    `in_turn` serves one model after the other; null does so where there are GPUs, but not enough for each model to have its own.
    """

    # How answers are scored does not change them; the stage that scores records it.
    NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {"concurrency", "in_turn", "request_timeout_s", *ScoringSection.model_fields}
    )

    concurrency: int = pydantic.Field(16, ge=1)
    in_turn: bool | None = None
    max_new_tokens: int = pydantic.Field(256, ge=1)
    blind: bool = True
    request_timeout_s: float = pydantic.Field(120.0, gt=0)


class ClusterConfig(Section):
    """Where Ray runs. `address` null starts or joins a local Ray, "local" starts one, "auto" demands a running cluster.

    `max_num_cpus` and `max_num_gpus` say how far an autoscaling cluster may grow; null means what the launcher's config on the
    head node says, or else what the cluster has now. `num_cpus` is the number of logical CPUs of a Ray started on this machine.
    Nothing waits longer than `wait_for_nodes_s` to be placed on a node.
    """

    address: str | None = None
    num_cpus: int | None = pydantic.Field(None, ge=1)
    max_num_cpus: int | None = pydantic.Field(None, ge=1)
    max_num_gpus: int | None = pydantic.Field(None, ge=0)
    wait_for_nodes_s: float = pydantic.Field(900.0, gt=0)


class RunConfig(Section):
    """Everything that one run needs. Stored in the run folder as `config.yaml`, with all defaults filled in."""

    run_dir: PathText
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
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
