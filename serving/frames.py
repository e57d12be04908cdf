"""From the bytes of a video, of frames or of an image to pixels by the endpoint's FrameSpec, as training decodes them."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from serving.refusals import unusable_message
from vidalign.errors import VideoError
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
            _check_taken(clip)
        return clip.frames, clip.metadata()

    def load_frames(
        self,
        frames: Sequence[bytes],
        fps_of_frames: float,
        num_frames: int = ANY,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        **options: Any,
    ) -> Frames:
        """Decode frames that are the bytes of images, `fps_of_frames` a second, as `load_bytes` does."""
        from vidalign.video import stills

        options.pop("decoder", None)
        named = [(f"frame {number}", stills.from_bytes(frame)) for number, frame in enumerate(frames)]
        with refused():
            clip = stills.decode_frames(named, fps_of_frames, spec_of(num_frames, **options), start_s=start_s, end_s=end_s)
            _check_taken(clip)
        return clip.frames, clip.metadata()

    def load_image(self, data: bytes, num_frames: int = ANY, **options: Any) -> np.ndarray:
        """Decode an image in the size of the FrameSpec: uint8 [H, W, 3]. Raises as `load_bytes` does."""
        from vidalign.video import stills

        options.pop("decoder", None)
        with refused():
            return stills.decode_image("image in memory", stills.from_bytes(data), spec_of(num_frames, **options)).frames[0]


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


def _check_taken(clip: Clip) -> None:
    takes = taken_by_the_model()
    if takes is not None:
        num_frames, height, width = clip.frames.shape[:3]
        takes("the video", num_frames, height, width, clip.duration_s)


def spec_of(num_frames: int, **options: Any) -> FrameSpec:
    """The FrameSpec that `media_io_kwargs` wrote."""
    return FrameSpec(num_frames=None if num_frames == ANY else num_frames, **options)


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """Turns a fault of a video into the `ValueError` that vLLM answers with 400."""
    try:
        yield
    except VideoError as error:
        raise ValueError(unusable_message(error)) from error
