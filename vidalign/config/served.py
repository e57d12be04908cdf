"""The configuration of `vidalign serve` without a run."""

from __future__ import annotations

from vidalign.config.cluster import ClusterConfig
from vidalign.config.run import ModelConfig, ServeConfig, VideoConfig
from vidalign.config.section import Section


class ServingConfig(Section):
    """What `vidalign serve` needs: these sections of a run, or the defaults for a checkpoint folder."""

    model: ModelConfig
    """The model to serve."""
    video: VideoConfig = VideoConfig()  # type: ignore[call-arg]
    """Which frames it sees."""
    serve: ServeConfig = ServeConfig()  # type: ignore[call-arg]
    """The endpoint."""
    cluster: ClusterConfig = ClusterConfig()  # type: ignore[call-arg]
    """Where Ray runs."""
