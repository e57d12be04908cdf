"""The configuration of a run, section by section: checked once, then frozen. This module imports nothing heavy.

`vidalign.config.loading` reads it from YAML. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import pydantic

from vidalign.config.choosing import ChoiceConfig, check_choice
from vidalign.config.cluster import ClusterConfig
from vidalign.config.counts import AnyCount, most
from vidalign.config.judging import ScoringSection
from vidalign.config.recipes import LeanpoRecipe, RecipeConfig
from vidalign.config.section import PathText, Section
from vidalign.config.serving import AccessConfig, AutoscalingConfig, LimitsConfig, MediaConfig, refuse_idle_scaling
from vidalign.config.steps import MAX_ROUNDS, StepConfig, check_count, with_steps
from vidalign.config.training import TrainConfig
from vidalign.types import DEADLINE_S, DEFAULT_BACKEND, Backend, FrameSpec


class ModelConfig(Section):
    """The policy to align: a local Hugging Face folder, or a hub name where a hub can be reached.

    `vision_attention` is how training computes a vision tower that attends in windows (`vidalign/model/vision_attention.py`).
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"vision_attention"})
    LATER: ClassVar[frozenset[str]] = frozenset({"vision_attention"})

    path: PathText
    """Folder of a Hugging Face model with safetensors weights, a name on the hub, or a uri of a store."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of the weights in engines and in training."""
    max_model_len: int = pydantic.Field(4096, ge=16)
    """Longest context in tokens: the prompt with its video, and the reply."""
    trust_remote_code: bool = False
    """Run the model's own Python code, for models that bring some. Only for models that you trust."""
    vision_attention: Literal["auto", "flash_attn", "sdpa"] = "auto"
    """How training computes a vision tower that attends in windows; "auto" takes flash attention where it can be had."""


class DataConfig(Section):
    """Files of rows {"id", "video", "question", "answer", ["options", "category", "caption", …]}; `vidalign.data.source` reads them.

    `video` is relative to `video_root`, which defaults to the folder of the file. `probe` rows are never trained on; the
    likelihood of their ground truth is logged. Without `eval`, no evaluation is run.
    """

    train: PathText
    """Rows to train on: a file, a folder of shards, `hf:org/name`, a uri, or the pairs of a run."""
    eval: PathText | None = None
    """Held-out rows on other videos, which base and aligned are asked; without them there is no evaluation."""
    probe: PathText | None = None
    """Rows that are never trained on; the likelihood of their ground truth is logged during training."""
    video_root: PathText | None = None
    """Folder that the rows' relative videos are relative to; null means the folder of each file."""
    limit: int | None = pydantic.Field(None, ge=1)
    """Take only this many rows of `train`; null takes all."""
    eval_limit: int | None = pydantic.Field(None, ge=1)
    """Take only this many rows of `eval`; null takes all."""


class VideoConfig(Section):
    """Frame sampling (see `vidalign.types.FrameSpec`) and how decoding is run."""

    LATER: ClassVar[frozenset[str]] = frozenset({"choice"})

    num_frames: int | None = pydantic.Field(8, ge=1)
    """Frames of a video, evenly spread; null where `fps` is set. The most that are shown where `choice` chooses them."""
    fps: float | None = pydantic.Field(None, gt=0, allow_inf_nan=False)
    """Frames for each second of a video instead of a fixed number."""
    max_frames: int = pydantic.Field(128, ge=1)
    """Most frames of a video where `fps` is set."""
    min_frames: int = pydantic.Field(2, ge=1)
    """Videos with fewer frames than this are quarantined."""
    height: int | None = pydantic.Field(None, ge=1)
    """Height of the frames in pixels, with `width`; null keeps the video's own size within the bounds below."""
    width: int | None = pydantic.Field(None, ge=1)
    """Width of the frames in pixels, with `height`."""
    max_pixels: int | None = pydantic.Field(None, ge=1)
    """Most pixels of one frame; larger frames are made smaller in proportion."""
    total_pixels: int | None = pydantic.Field(None, ge=1)
    """Most pixels of all frames of a video together."""
    snap_to_keyframes: bool = False
    """Take the nearest key frames, which is faster and less exact."""
    square_pixels: bool = True
    """Stretch videos whose pixels are not square to the shape that they are shown in."""
    hdr_to_sdr: bool = True
    """Map the tones of HDR videos to what models were trained on."""
    max_duration_s: float = pydantic.Field(FrameSpec.max_duration_s, gt=0)
    """Longer videos are quarantined."""
    max_pixels_decoded: int = pydantic.Field(FrameSpec.max_pixels_decoded, ge=1)
    """Videos of which more pixels would have to be decoded are quarantined."""
    backend: Backend = DEFAULT_BACKEND
    """What decodes videos."""
    choice: ChoiceConfig = ChoiceConfig()  # type: ignore[call-arg]
    """Show frames that the question calls for in place of evenly spread ones."""
    deadline_s: float = pydantic.Field(DEADLINE_S, gt=0)
    """A video that takes longer to decode is quarantined."""
    num_decoders: AnyCount = None
    """Processes that decode; null takes as many as fit beside the engines; [fewest, most] follow the work and the nodes."""
    cache_dir: PathText | None = None
    """Where decoded frames are kept, by content; null means the run's folder."""

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
        check_choice(self.choice, self.num_frames)
        return self

    @property
    def most_decoders(self) -> int | None:
        """How many processes may decode; None where that is left open."""
        return most(self.num_decoders)

    def frame_spec(self) -> FrameSpec:
        """The part of this section that decides which frames are taken, and at which size."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(FrameSpec)}
        return FrameSpec(**{**fields, "choice": self.choice.frame_choice()})


class RolloutConfig(Section):
    """The vLLM engines that generate responses. `engine_args` are passed to `vllm.LLM` unchanged."""

    num_engines: AnyCount = None
    """vLLM engines; null fills the cluster; [fewest, most] follow the work and the nodes."""
    gpus_per_engine: int = pydantic.Field(1, ge=0)
    """GPUs that share one engine (tensor parallelism)."""
    batch_size: int = pydantic.Field(64, ge=1)
    """Examples of one chunk, the smallest piece of work that is kept."""
    engine_args: dict[str, Any] = {}
    """Arguments of `vllm.LLM`, passed as they are."""


class ObjectiveConfig(Section):
    """The loss (`vidalign/learning/objectives/`). `params` are the keyword arguments of the objective's dataclass."""

    name: str = "leanpo"
    """The loss: a name of `vidalign/learning/objectives`, or `package.module:attribute`."""
    params: dict[str, float | int | bool | str] = {}
    """The objective's own parameters, such as `{beta: 0.1}`."""


class ServeConfig(Section):
    """The Ray Serve endpoint."""

    host: str = "127.0.0.1"
    """Address that the endpoint listens on; 127.0.0.1 is this machine alone."""
    port: int = pydantic.Field(8000, ge=1, le=65535)
    """Port that the endpoint listens on."""
    min_replicas: int = pydantic.Field(1, ge=0)
    """Fewest replicas of each model; with 0 a model that nobody asks for gives up its CPUs and GPUs."""
    max_replicas: int = pydantic.Field(1, ge=1)
    """Most replicas of each model."""
    gpus_per_replica: int = pydantic.Field(1, ge=0)
    """GPUs of one replica (tensor parallelism)."""
    media_root: PathText | None = None
    """The only folder whose files clients may name as `file:` urls; null: none, or for a run on this machine alone its videos."""
    engine_args: dict[str, Any] = {}
    """Arguments of the vLLM engines, passed as they are."""
    start_timeout_s: float = pydantic.Field(900.0, gt=0)
    """How long an endpoint may take to start."""
    drain_s: float = pydantic.Field(30.0, ge=0)
    """How long running requests may go on once the endpoint is told to stop."""
    further_versions: int | None = pydantic.Field(None, ge=0)
    """Versions of aligned that find room beside the first (`vidalign promote`); null means one on CPUs and none on GPUs."""
    adapters: bool = False
    """Serve a run's adapter (`train.lora.export=both`) over the engine of its base; an evaluation has an engine for each policy."""
    access_log: PathText | None = None
    """A folder for one line of JSON a request, without prompts, replies and keys; null writes none."""
    client_sampling: Literal["refuse", "same", "allow"] = "refuse"
    """What becomes of a request's own frame sampling: refused, taken where it is the endpoint's (same), or taken within the
    endpoint's bounds (allow).
    """
    autoscaling: AutoscalingConfig = AutoscalingConfig()  # type: ignore[call-arg]
    """How fast replicas come and go."""
    limits: LimitsConfig = LimitsConfig()  # type: ignore[call-arg]
    """How much may be asked."""
    media: MediaConfig = MediaConfig()  # type: ignore[call-arg]
    """Where videos are read from."""
    access: AccessConfig = AccessConfig()  # type: ignore[call-arg]
    """Who may ask."""

    _scaling_makes_a_difference = pydantic.model_validator(mode="after")(refuse_idle_scaling)


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
    """Requests in flight at a replica."""
    in_turn: bool | None = None
    """Serve one model after the other; null does so where GPUs do not suffice for all at once."""
    max_new_tokens: int = pydantic.Field(256, ge=1)
    """Most tokens of an answer."""
    blind: bool = True
    """Also ask the base model about videos of noise: what it scores without seeing."""
    request_timeout_s: float = pydantic.Field(120.0, gt=0)
    """How long one answer may take."""


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class RunConfig(Section):
    """Everything that one run needs. Stored in the run folder as `config.yaml`, with all defaults filled in."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"track"})
    LATER: ClassVar[frozenset[str]] = frozenset({"steps", "max_staleness"})

    run_dir: PathText
    """Folder of the run, which every node sees, or its uri in an object store. Running again continues what is there."""
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    """Decides every random choice of a run."""
    rounds: int = pydantic.Field(1, ge=1, le=MAX_ROUNDS)
    """Rounds of rollout and training; each starts from the policy of the one before. A list of steps stands for their rounds."""
    steps: tuple[StepConfig, ...] = ()
    """What rounds change, in turn; written as a list in the place of `rounds`."""
    max_staleness: int | None = pydantic.Field(None, ge=0)
    """How many rounds older than the policy that a round trains may be the one whose responses it learns from; null is 1 with
    `cluster.overlap`, else 0.
    """
    model: ModelConfig
    """The policy to align."""
    data: DataConfig
    """The rows."""
    video: VideoConfig = VideoConfig()  # type: ignore[call-arg]
    """Which frames are taken, and how."""
    recipe: RecipeConfig = LeanpoRecipe()  # type: ignore[call-arg]
    """How responses and pairs are made."""
    rollout: RolloutConfig = RolloutConfig()  # type: ignore[call-arg]
    """The engines that generate."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss."""
    train: TrainConfig = TrainConfig()  # type: ignore[call-arg]
    """Training."""
    serve: ServeConfig = ServeConfig()  # type: ignore[call-arg]
    """The endpoint."""
    evaluate: EvaluateConfig = EvaluateConfig()  # type: ignore[call-arg]
    """The evaluation."""
    cluster: ClusterConfig = ClusterConfig()  # type: ignore[call-arg]
    """Where Ray runs."""
    track: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """Where curves, evaluation, configuration and report are sent too: tensorboard, wandb, mlflow, trackio."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _steps_in_place_of_rounds(cls, values: Any) -> Any:
        return with_steps(values)

    @pydantic.model_validator(mode="after")
    def _as_many_as_steps(self) -> RunConfig:
        check_count(self.rounds, self.steps)
        return self

    @pydantic.model_validator(mode="after")
    def _overlap_has_something_to_do(self) -> RunConfig:
        if self.cluster.overlap and self.staleness == 0:
            raise ValueError(
                "cluster.overlap=true makes the responses of the next round while this one trains, so with the policy from before it, "
                "and max_staleness=0 allows none but the newest; set max_staleness to 1, or cluster.overlap to false"
            )
        if self.cluster.overlap and self.rounds == 1:
            raise ValueError(
                "cluster.overlap=true makes the responses of the next round while this one trains, and rounds=1 has no next one; set "
                "rounds to 2 or more, or cluster.overlap to false"
            )
        return self

    @property
    def staleness(self) -> int:
        """How many rounds old the policy that makes a round's responses is, where there were as many rounds."""
        if self.max_staleness is None:
            return int(self.cluster.overlap)
        return self.max_staleness
