"""Gives vLLM the same frames that training saw: a plugin that vLLM loads in each of its processes.

    video_url, image_url ── MediaConnector "vidalign" (which urls are read at all, serving/media.py)
              ── video loader "vidalign" (bytes → frames by the endpoint's FrameSpec, with vidalign.video) ── processor

The entry point `vllm.general_plugins` in pyproject.toml names `register`, which runs in the processes of rollouts too. It adds
entries to vLLM's registries; the decoder is imported with the first video.
"""

from __future__ import annotations

from typing import Any

from cluster import orphans
from serving.frames import ANY, FrameSpecLoader
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec

NAME = "vidalign"  # the name of both entries
CORRECTED_MODELS = {"LlavaOnevisionForConditionalGeneration": "cluster.vllm_models:LlavaOnevisionForConditionalGeneration"}


def register() -> None:
    """Add video loader, media connector and corrected models to vLLM's registries, and let an engine's process end with the one that
    started it. Called by vLLM, possibly more than once."""
    orphans.end_with_parent()
    import vllm
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    from serving.media import PolicyMediaConnector

    VIDEO_LOADER_REGISTRY.register(NAME)(FrameSpecLoader)
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(PolicyMediaConnector)
    for architecture, place in CORRECTED_MODELS.items():
        vllm.ModelRegistry.register_model(architecture, place)


def media_io_kwargs(spec: FrameSpec, decoder: Backend = DEFAULT_BACKEND) -> dict[str, dict[str, Any]]:
    """The `media_io_kwargs` of vLLM that make an engine decode with `FrameSpecLoader`."""
    row = spec.to_row()
    return {"video": {"video_backend": NAME, "decoder": decoder, **row, "num_frames": row["num_frames"] or ANY}}
