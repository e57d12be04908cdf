"""Frames that are images in files of their own, and single images, as clips.

    paths ── sampled by time at fps (timing) ── open those taken ── upright by EXIF ── RGB ── resize ── Clip

All frames come out in the size of the first one, as in a video file: one of another size is scaled to it. What is transparent is
shown on white. An image is a clip of one frame; of a FrameSpec only its size counts.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageOps

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video import bounds, readers
from vidalign.video.clip import Clip
from vidalign.video.timing import Part, Timing, part_of, sampled

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
BACKEND = "pillow"
EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width

Open: TypeAlias = Callable[[], IO[bytes]]


def decode_frames(
    frames: Sequence[tuple[str, Open]], fps: float, spec: FrameSpec, *, start_s: float = 0.0, end_s: float | None = None
) -> Clip:
    """The frames that `spec` takes of a video whose frames are files: (name, how to open it), in order, `fps` a second.

    Raises:
        VideoError: with reason missing, unreadable, zero_byte, not_an_image, truncated, too_few_frames, too_long or out_of_bounds.
    """
    first_name, total = frames[0][0], len(frames)
    whole = Timing(fps=fps, duration_s=total / fps)
    part = Part(first=0, count=total, timing=whole)
    if start_s or end_s is not None:
        part = part_of(first_name, total, whole, start_s, end_s)
    if part.count < max(1, spec.min_frames):
        raise VideoError(
            "too_few_frames",
            f"{first_name} is the first of {part.count} frames, but video.min_frames is {spec.min_frames}; lower "
            "video.min_frames or leave the frames out",
        )
    bounds.check_duration(first_name, part.timing, spec)
    indices = sampled(part.count, part.timing, spec)
    with _opened(*frames[0], spec) as image:
        size = _shown_size(image)
    bounds.check_size(first_name, size, readers.target_size(*size, spec, len(indices)), len(indices), spec)
    wanted = ((_read(*frames[part.first + index], spec), size) for index in dict.fromkeys(indices))
    return Clip(
        frames=readers.resized(wanted, indices, spec),
        fps=fps,
        total_num_frames=part.count,
        duration_s=part.timing.duration_s,
        indices=tuple(indices),
        backend=BACKEND,
    )


def decode_image(name: str, source: Open, spec: FrameSpec) -> Clip:
    """An image as a clip of one frame. Raises `VideoError` as `decode_frames` does."""
    pixels = _read(name, source, spec)
    frames = readers.resized(iter([(pixels, (pixels.shape[0], pixels.shape[1]))]), [0], spec)
    return Clip(frames=frames, fps=1.0, total_num_frames=1, duration_s=1.0, indices=(0,), backend=BACKEND)


def from_file(path: str) -> Open:
    """How to open a file. What opens it raises `VideoError` where there is none."""

    def opened() -> IO[bytes]:
        try:
            return open(path, "rb")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise VideoError("missing", f"no file at {path}") from error
        except OSError as error:
            raise VideoError("unreadable", f"{path} cannot be read: {error.strerror or error}") from error

    return opened


def from_bytes(data: bytes) -> Open:
    """How to open what is in memory."""
    return lambda: io.BytesIO(data)


@contextlib.contextmanager
def _opened(name: str, source: Open, spec: FrameSpec) -> Iterator[PIL.Image.Image]:
    """An image whose header was read, of an allowed format and size."""
    with source() as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)  # the size is checked below
        if not file.seek(0, os.SEEK_END):
            raise VideoError("zero_byte", f"{name} is empty (0 bytes)")
        file.seek(0)
        try:
            image = PIL.Image.open(file, formats=FORMATS)
        except PIL.Image.DecompressionBombError as error:
            raise VideoError("too_long", f"{name} is too large an image: {error}") from error
        except PIL.UnidentifiedImageError as error:
            raise VideoError("not_an_image", f"{name} is no image of {', '.join(FORMATS)}") from error
        except (OSError, ValueError, SyntaxError) as error:
            raise VideoError("truncated", f"{name} is damaged: {error}") from error
        with image:
            if image.width * image.height > spec.max_pixels_decoded:
                raise VideoError(
                    "too_long",
                    f"{name} has {image.width}x{image.height} pixels, and video.max_pixels_decoded is "
                    f"{spec.max_pixels_decoded:,}; raise it, or scale the image down",
                )
            yield image


def shown_size(path: str) -> tuple[int, int]:
    """(height, width) of an image file as shown, from its header. Raises `OSError` or `ValueError` if it cannot be read."""
    with PIL.Image.open(path, formats=FORMATS) as image:
        return _shown_size(image)


def _shown_size(image: PIL.Image.Image) -> tuple[int, int]:
    """(height, width) as shown."""
    exchanged = image.getexif().get(EXIF_ORIENTATION) in QUARTER_TURNS
    return (image.width, image.height) if exchanged else (image.height, image.width)


def _read(name: str, source: Open, spec: FrameSpec) -> np.ndarray:
    """RGB uint8 [H, W, 3] of an image as it is shown."""
    with _opened(name, source, spec) as image:
        if image.mode in ("I", "F"):
            raise VideoError(
                "not_an_image",
                f"{name} has pixels of 32 bits, which do not say what is black and what is white; save it with 8 or 16 bits",
            )
        try:
            upright: Any = PIL.ImageOps.exif_transpose(image)
            return np.asarray(_rgb(upright))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise VideoError("truncated", f"{name} is damaged: {error}") from error


def _rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8
        return PIL.Image.fromarray((np.asarray(image, np.int64).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        shown = image.convert("RGBA")
        white = PIL.Image.new("RGBA", shown.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, shown).convert("RGB")
    return image.convert("RGB")
