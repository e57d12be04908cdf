"""Gives vLLM the same frames that training saw: a plugin that vLLM loads in each of its processes.

    video_url ── MediaConnector "vidalign" (which urls are read at all, serving/media.py)
              ── video loader "vidalign" (bytes → frames by the endpoint's FrameSpec, with vidalign.video.decoding) ── processor

The entry point `vllm.general_plugins` in pyproject.toml names `register`, which runs in the processes of rollouts too. It only adds
entries to vLLM's registries; the decoder is imported with the first video.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.refusals import unusable_message
from vidalign.errors import VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec

if TYPE_CHECKING:
    import numpy as np

NAME = "vidalign"  # the name of both entries
CORRECTED_MODELS = {"LlavaOnevisionForConditionalGeneration": "cluster.vllm_models:LlavaOnevisionForConditionalGeneration"}
_ANY = -1  # vLLM's integer for "num_frames is not set"


def register() -> None:
    """Add video loader, media connector and corrected models to vLLM's registries. Called by vLLM, possibly more than once."""
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
    return {"video": {"video_backend": NAME, "decoder": decoder, **row, "num_frames": row["num_frames"] or _ANY}}


class FrameSpecLoader:
    """Video loader of vLLM's `VIDEO_LOADER_REGISTRY`, with the options of `media_io_kwargs` as keyword arguments."""

    def load_bytes(
        self, data: bytes, num_frames: int = _ANY, *, decoder: Any = DEFAULT_BACKEND, **options: Any
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Decode the bytes of a video file.

        Returns:
            Frames, uint8 [F, H, W, 3], and metadata whose `do_sample_frames` is False: the model's processor takes all frames.

        Raises:
            ValueError: the video cannot be used; `unusable_video` reads the reason back from the message.
        """
        from vidalign.video.decoding import decode_bytes

        spec = FrameSpec(num_frames=None if num_frames == _ANY else num_frames, **options)
        try:
            clip = decode_bytes(data, spec, decoder)
        except VideoError as error:
            raise ValueError(unusable_message(error)) from error
        return clip.frames, clip.metadata()
