"""Gives vLLM the same frames that training saw: a plugin that vLLM loads in each of its processes.

    video_url ── MediaConnector "vidalign" (which urls are read at all, serving/media.py)
              ── video loader "vidalign" (bytes → frames by the endpoint's FrameSpec, with vidalign.video.decoding) ── processor

The entry point `vllm.general_plugins` in pyproject.toml names `register`. It only adds two entries to vLLM's registries; the
decoder is imported with the first video.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.refusals import unusable_message
from vidalign.errors import VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec

if TYPE_CHECKING:
    import numpy as np

    from vidalign.config.run import ModelConfig

NAME = "vidalign"  # the name of both entries
MODEL_VARIABLE = "VIDALIGN_SERVED_MODEL"
_ANY = -1  # vLLM's integer for "num_frames is not set"


def register() -> None:
    """Add the video loader and the media connector to vLLM's registries. Called by vLLM, possibly more than once."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    from serving.media import PolicyMediaConnector

    VIDEO_LOADER_REGISTRY.register(NAME)(FrameSpecLoader)
    MEDIA_CONNECTOR_REGISTRY.register(NAME)(PolicyMediaConnector)


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
            takes = _taken_by_the_model()
            if takes is not None:
                num_frames, height, width = clip.frames.shape[:3]
                takes("the video", num_frames, height, width, clip.duration_s)
        except VideoError as error:
            raise ValueError(unusable_message(error)) from error
        return clip.frames, clip.metadata()


def model_variable(path: str, model: ModelConfig) -> dict[str, str]:
    """The environment variable by which a replica knows the model folder whose processor will see the frames."""
    named = {"path": path, "max_model_len": model.max_model_len, "trust_remote_code": model.trust_remote_code}
    return {MODEL_VARIABLE: json.dumps(named)}


@functools.cache
def _taken_by_the_model() -> Callable[[str, int, int, int, float], None] | None:
    """The check of `vidalign.model.clip_check` for the served model; None outside of a replica."""
    named = os.environ.get(MODEL_VARIABLE)
    if not named:
        return None
    from vidalign.model.clip_check import ClipCheck

    return ClipCheck(**json.loads(named))
