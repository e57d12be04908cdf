"""From a decoded frame to the picture that players show: RGB, turned and mirrored by the display matrix, with square pixels.

The file says which matrix and range its colours have; without a word, FFmpeg's defaults hold (BT.601, limited). HDR becomes SDR by
the rule of `vidalign.video.tone`.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vidalign.types import FrameSpec
from vidalign.video import tone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orientation:
    """What is done to a stored picture, in this order: rows and columns exchanged, mirrored from side to side, turned upside down."""

    exchanged: bool = False
    mirrored: bool = False
    flipped: bool = False

    @property
    def mirrors(self) -> bool:
        """Whether this is more than a rotation."""
        return self.exchanged ^ self.mirrored ^ self.flipped


def orientation(frame: VideoFrame) -> Orientation:
    """The display matrix of a frame, by quarter turns: other angles count as the nearest one."""
    side_data: Any = frame.side_data  # PyAV's types say that its keys are texts
    stored = side_data.get(Type.DISPLAYMATRIX)
    if stored is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(stored), np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y; ISO/IEC 14496-12
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(mirrored=a < 0, flipped=d < 0)
    return Orientation(exchanged=True, mirrored=c < 0, flipped=b < 0)


def size_of(frame: VideoFrame) -> tuple[int, int]:
    """(height, width) as stored."""
    return frame.height, frame.width


def pixel_aspect(stream: VideoStream, spec: FrameSpec) -> Fraction:
    """Width over height of a pixel; 1 where the file does not say it, or `spec` takes pixels as square whatever it says."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if spec.square_pixels and aspect and aspect > 0 else Fraction(1)


def shown_size(size: tuple[int, int], aspect: Fraction) -> tuple[int, int]:
    """(height, width) with square pixels, of a picture whose pixels have this aspect: the side that is too short is made longer."""
    height, width = size
    return (height, round(width * aspect)) if aspect >= 1 else (round(height / aspect), width)


def upright(frame: VideoFrame, converter: VideoReformatter, spec: FrameSpec) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a frame as players show it, but for pixels that are not square."""
    # Bicubic is what fills in missing chroma where FFmpeg has no quick way: with more than 8 bits, for example.
    pixels = converter.reformat(frame, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1).to_ndarray()
    if frame.color_trc in tone.HDR and spec.hdr_to_sdr:
        pixels = tone.to_sdr(pixels, int(frame.color_trc))
    turn = orientation(frame)
    if turn.exchanged:
        pixels = pixels.transpose(1, 0, 2)
    if turn.mirrored:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if turn.flipped else pixels
