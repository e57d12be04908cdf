"""From a decoded frame to the picture that players show: RGB, turned and mirrored by the display matrix, of the wanted size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter


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


def upright(frame: VideoFrame, converter: VideoReformatter, size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 [H, W, 3] of a frame as players show it. `size`: (height, width) as stored, to which a frame of another is scaled."""
    if size_of(frame) == size:
        pixels = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    else:
        scaled = converter.reformat(
            frame, width=size[1], height=size[0], format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        pixels = scaled.to_ndarray()
    turn = orientation(frame)
    if turn.exchanged:
        pixels = pixels.transpose(1, 0, 2)
    if turn.mirrored:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if turn.flipped else pixels
