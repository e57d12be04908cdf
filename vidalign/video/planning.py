"""What decoding will give, from what files say of themselves: its frames' number, size and times. Decodes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np

from vidalign.errors import VideoError
from vidalign.types import FrameSpec
from vidalign.video import decoding
from vidalign.video.clip import Clip
from vidalign.video.naming import Visual, images_in, local_path, visual_of
from vidalign.video.readers import target_size
from vidalign.video.stills import shown_size
from vidalign.video.timing import Part, Timing, part_of, sampled


def planned(name: str, spec: FrameSpec) -> Clip | None:
    """The clip, with black frames, of a video, frames or an image by its name; None where it is not on this machine.

    Where frames are chosen by a question, the most that may be shown stand for them.

    Raises:
        VideoError: it will be quarantined.
    """
    visual, spec = visual_of(name), dataclasses.replace(spec, choice=None)
    path = local_path(visual.uris[0])
    if path is None:
        return None
    if visual.kind == "video":
        return decoding.planned(path, spec, start_s=visual.start_s, end_s=visual.end_s)
    try:
        return _stills(name, visual, path, spec)
    except (OSError, ValueError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError("unreadable", f"{name} cannot be read: {error}") from error


def _stills(name: str, visual: Visual, path: str, spec: FrameSpec) -> Clip:
    """Frames in files, or one image."""
    paths = images_in(path) if visual.kind == "folder" else [path]
    if visual.kind == "image":
        height, width = target_size(*shown_size(paths[0]), spec, 1)
        return Clip(
            frames=np.zeros((1, height, width, 3), np.uint8), fps=1.0, total_num_frames=1, duration_s=1.0, indices=(0,)
        )
    assert visual.fps is not None
    total = len(paths) if visual.kind == "folder" else len(visual.uris)
    timing = Timing(fps=visual.fps, duration_s=total / visual.fps)
    part = Part(first=0, count=total, timing=timing)
    if visual.is_part:
        part = part_of(name, total, timing, visual.start_s, visual.end_s)
    if part.count < spec.min_frames:
        raise VideoError("too_few_frames", f"{name} has {part.count} frames, but video.min_frames is {spec.min_frames}")
    indices = sampled(part.count, part.timing, spec)
    height, width = target_size(*shown_size(paths[0]), spec, len(indices))
    return Clip(
        frames=np.zeros((len(indices), height, width, 3), np.uint8),
        fps=part.timing.fps,
        total_num_frames=part.count,
        duration_s=part.timing.duration_s,
        indices=tuple(indices),
        times=part.timing.times_s(indices),
    )
