"""What vLLM knows of an endpoint's frames: the loader that it finds by name, and which frames its model takes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from serving.refusals import unusable_message
from vidalign.errors import VideoError
from vidalign.records import FrameChoice
from vidalign.types import DEFAULT_BACKEND, FrameSpec

if TYPE_CHECKING:
    import numpy as np

    from vidalign.config.run import ModelConfig
    from vidalign.video.clip import Clip

Frames: TypeAlias = "tuple[np.ndarray, dict[str, Any]]"  # uint8 [F, H, W, 3], and their metadata
MODEL_VARIABLE = "VIDALIGN_SERVED_MODEL"
ANY = -1  # vLLM's integer for "num_frames is not set"


class FrameSpecLoader:
    """Video loader of vLLM's `VIDEO_LOADER_REGISTRY`, with the options of `media_io_kwargs` as keyword arguments."""

    def load_bytes(
        self,
        data: bytes,
        num_frames: int = ANY,
        *,
        decoder: Any = DEFAULT_BACKEND,
        start_s: float = 0.0,
        end_s: float | None = None,
        **options: Any,
    ) -> Frames:
        """Decode the bytes of a video file, or of its part from `start_s` to `end_s`.

        Returns:
            Frames, uint8 [F, H, W, 3], and metadata whose `do_sample_frames` is False: the model's processor takes all frames.

        Raises:
            ValueError: the video cannot be used; `unusable_video` reads the reason back from the message.
        """
        from vidalign.video.decoding import decode_bytes

        with refused():
            clip = decode_bytes(data, spec_of(num_frames, **options), decoder, start_s=start_s, end_s=end_s)
            check_taken(clip)
        return clip.frames, clip.metadata()


def model_variable(path: str, model: ModelConfig) -> dict[str, str]:
    """The environment variable by which a replica knows the model folder whose processor will see the frames."""
    named = {"path": path, "max_model_len": model.max_model_len, "trust_remote_code": model.trust_remote_code}
    return {MODEL_VARIABLE: json.dumps(named)}


@functools.cache
def taken_by_the_model() -> Callable[[str, int, int, int, float], None] | None:
    """The check of `vidalign.model.clip_check` for the served model; None outside of a replica."""
    named = os.environ.get(MODEL_VARIABLE)
    if not named:
        return None
    from vidalign.model.clip_check import ClipCheck

    return ClipCheck(**json.loads(named))


def check_taken(clip: Clip) -> None:
    """Raises `VideoError` (unfit) for frames that the served model's processor does not take."""
    takes = taken_by_the_model()
    if takes is not None:
        num_frames, height, width = clip.frames.shape[:3]
        takes("the video", num_frames, height, width, clip.duration_s)


def spec_of(num_frames: int | None, **options: Any) -> FrameSpec:
    """The FrameSpec that `media_io_kwargs` wrote."""
    choice = options.pop("choice", None)
    return FrameSpec(
        num_frames=None if num_frames == ANY else num_frames,
        choice=FrameChoice.from_row(choice) if isinstance(choice, dict) else choice,
        **options,
    )


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Turns a fault of a video into the `ValueError` that vLLM answers with 400."""
    try:
        yield
    except VideoError as error:
        raise ValueError(unusable_message(error)) from error
