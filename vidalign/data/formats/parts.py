"""Which part of a video a source's row shows, in seconds: in columns, or in the object that names the video.

    "video_start": 2, "video_end": 5       qwen-vl-utils' fields, and so those of what calls it (verl)
    "clip": {"start": 2, "end": 5}         vidalign's own; [2, 5] is the same
    "clips": [[2, 5], null]                one for each video of the row; so are lists of video_start and video_end

Other fields that look like bounds say neither their unit nor what they bound: a row that has them is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from vidalign.data.formats.fields import Fields, has_content
from vidalign.errors import RowError

BOUNDS = {"start": "video_start", "end": "video_end"}
_UNIT = r"(?:_?(?:time|times|timestamp|ts|t|s|ms|secs?|seconds?|frames?|idx|index))?"
_UNSURE = re.compile(
    rf"(?:(?:clip|segment|seg|video|event|t|time|timestamp)_)?(?:start|end|begin){_UNIT}"
    r"|(?:video_|clip_)?(?:segments?|time_?range|time_?span)|clip|clips"
)
_FIX = 'write it as video_start and video_end or as clip, {"start": …, "end": …}, in seconds, or leave the field out'

Clip = dict[str, float]


def take_clip(rest: Fields, field: str) -> Clip:
    """Take the bounds out of the object that names a video. Raises `RowError` for what may be bounds and cannot be read."""
    found = _taken(rest, field)
    for name in sorted(rest):
        refuse_unsure(name, rest[name], f"{field}.{name}")
    return found


def take_clips(fields: Fields, num_videos: int) -> list[Clip]:
    """Take the bounds of each video of a row out of its columns.

    Raises:
        RowError: there are bounds for another number of videos, or what may be bounds cannot be read.
    """
    clips: list[Clip] = [{} for _ in range(num_videos)]
    several = fields.get("clips")
    if isinstance(several, list) and any(_bounds_of(item) for item in several):
        clips = [_checked(_bounds_of(item) or {}, "clips") for item in _each(fields.pop("clips"), "clips", num_videos)]
    elif any(isinstance(fields.get(name), list) for name in BOUNDS.values()):
        for ours, name in BOUNDS.items():
            values = _each(fields.pop(name, None) or [None] * num_videos, name, num_videos)
            for clip, value in zip(clips, values, strict=True):
                clip |= {} if value is None else {ours: _seconds(value, name)}
    elif one := _taken(fields, ""):
        clips = [one] if num_videos == 1 else _each([one], "clip", num_videos)
    for name in sorted(fields):
        refuse_unsure(name, fields[name], name)
    return clips


def refuse_unsure(name: str, value: Any, field: str) -> None:
    """Raises `RowError` for a field with a number, or numbers, and a name as of bounds."""
    numbers = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    if _UNSURE.fullmatch(name.lower()) and numbers and all(_as_number(item) is not None for item in numbers):
        raise RowError(field, f"is {value!r}, which may bound the part of a video that the row is about", _FIX)


def _taken(fields: Fields, field: str) -> Clip:
    """Take `clip`, or `video_start` and `video_end`, out of some fields."""
    at = f"{field}." if field else ""
    clip = _bounds_of(fields.get("clip"))
    if clip is not None:
        fields.pop("clip")
    bounds = {ours: _seconds(fields.pop(name), at + name) for ours, name in BOUNDS.items() if has_content(fields.get(name))}
    if clip and bounds and clip != bounds:
        raise RowError(f"{at}clip", f"is {clip}, and video_start and video_end say {bounds}", "leave one of the two out")
    return _checked(clip or bounds, f"{at}clip")


def _bounds_of(value: Any) -> Clip | None:
    """{"start", "end"} of an object or of two numbers; None for anything else, such as the name of a file."""
    if isinstance(value, list) and len(value) == 2:
        value = dict(zip(BOUNDS, value, strict=True))
    if not isinstance(value, dict) or not value or not value.keys() <= BOUNDS.keys():
        return None
    found = {name: _as_number(item) for name, item in value.items() if item is not None}
    return {name: item for name, item in found.items() if item is not None} if None not in found.values() else None


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return value if isinstance(value, int) else number


def _seconds(value: Any, field: str) -> float:
    number = _as_number(value)
    if number is None:
        raise RowError(field, f"must be seconds of the video, got {value!r}", "write a number, or leave the field out")
    return number


def _checked(clip: Clip, field: str) -> Clip:
    if not all(map(math.isfinite, clip.values())):
        raise RowError(field, f"is {clip}, and a video has no such time", "write seconds, or leave the field out")
    return clip


def _each(values: Sequence[Any], field: str, num_videos: int) -> list[Any]:
    if not isinstance(values, list) or len(values) != num_videos:
        count = len(values) if isinstance(values, list) else 1
        why = f"has the bounds of {count} {'video' if count == 1 else 'videos'}, and the row shows {num_videos}"
        raise RowError(field, why, "give a list, clips, with one entry for each video: [start, end] in seconds, or null")
    return values
