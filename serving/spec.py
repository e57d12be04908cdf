"""What an endpoint serves, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from cluster.engines import ONE_VIDEO
from cluster.resources import ServePlan
from vidalign import prompts
from vidalign.config.cluster import ClusterConfig
from vidalign.config.run import ModelConfig, ServeConfig
from vidalign.types import DEADLINE_S, DEFAULT_BACKEND, Backend, FrameSpec, PolicyVersion


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointSpec:
    """One endpoint: its `models` (model id → policy), and the options that they share.

    `plan` gives the replicas and their resources (`cluster.plan`); `frame_spec` says how the frames of every video are
    sampled, `decoder` names the backend that decodes them, and `limits` says how many videos and images a prompt may have.
    `deadline_s` and `num_decoders` are those of the video section, and `plain_prompt` that of the recipe. No replica waits longer
    than `wait_for_nodes_s` for a node. `adapters` (model id → folder) are served over the base's engine (`serving.adapters`).
    """

    models: Mapping[str, PolicyVersion]
    model: ModelConfig
    serve: ServeConfig
    plan: ServePlan
    frame_spec: FrameSpec
    decoder: Backend = DEFAULT_BACKEND
    limits: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict(ONE_VIDEO))
    deadline_s: float = DEADLINE_S
    num_decoders: int | None = None
    plain_prompt: str = prompts.PLAIN
    adapters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    wait_for_nodes_s: float = ClusterConfig().wait_for_nodes_s  # type: ignore[call-arg]
