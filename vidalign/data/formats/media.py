"""Videos and images in one row of a source: in columns, and in the parts of a message, as a vidalign row holds them.

"a.mp4", {"path" or "url" or "video": "a.mp4"}      a path or uri
["f1.jpg", "f2.jpg"]                                frames, with their "fps" where the source says it
{"video": …, "video_start": 2, "video_end": 5}      with the part that is shown, as "clip"
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from vidalign.data.formats.fields import Fields, Notes, has_content, kind_of
from vidalign.data.formats.parts import take_clip
from vidalign.errors import RowError
from vidalign.video.naming import IMAGE_SUFFIXES

Kind: TypeAlias = Literal["video", "image"]

VIDEO_SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"),
)
COLUMNS: Sequence[tuple[str, Kind]] = (("videos", "video"), ("video", "video"), ("images", "image"), ("image", "image"))
_RATES = ("fps", "sample_fps")


@dataclasses.dataclass(frozen=True)
class Medium:
    """A video or image. `frames` are its paths where it is a list of frames, of which `fps` are shown a second."""

    kind: Kind
    path: str = ""
    frames: tuple[str, ...] = ()
    fps: float | None = None
    clip: tuple[tuple[str, float], ...] = ()

    def form(self) -> dict[str, Any]:
        """The fields `video`, `fps` and `clip` of a row."""
        form: dict[str, Any] = {"video": list(self.frames) or self.path}
        form |= {"fps": self.fps} if self.fps is not None else {}
        return form | ({"clip": dict(self.clip)} if self.clip else {})


def medium(value: Any, field: str, notes: Notes, kind: Kind) -> Medium:
    """A video or image given as a text, a list of frames, or an object that names one. An image field may name a video too.

    Raises:
        RowError: the value is embedded bytes, or names nothing.
    """
    fps: float | None = None
    clip: dict[str, float] = {}
    if isinstance(value, dict) and not has_content(value.get("bytes")):
        rest = {name: item for name, item in value.items() if has_content(item)}
        named = next((name for name in (f"{kind}_url", kind, "path", "url") if name in rest), None)
        value = rest.pop(named) if named else None
        if isinstance(value, list):
            fps = next((rest.pop(name) for name in _RATES if name in rest), None)
        clip = take_clip(rest, field)
        if rest.get("type") in (kind, f"{kind}_url"):
            rest.pop("type")
        for name in sorted(rest):
            notes[f"'{name}' of a {kind}, which is not used"] += 1
        if isinstance(value, dict):  # {"type": "video_url", "video_url": {"url": …}}
            inner = medium(value, field, notes, kind)
            return with_clip(inner, clip, field)
    if isinstance(value, list) and kind == "video":
        frames = tuple(_path(frame, field, kind) for frame in value)
        return Medium(kind, frames=frames, fps=fps, clip=tuple(clip.items()))
    path = _path(value, field, kind)
    if kind == "video" and path.lower().endswith(IMAGE_SUFFIXES):
        fix = 'put the frames of one video into a list of their own, [["1.jpg", "2.jpg"]], and images into images'
        raise RowError(field, f"names an image ({path})", fix)
    if kind == "image" and pathlib.PurePath(path).suffix.lower() in VIDEO_SUFFIXES:
        kind = "video"
    return Medium(kind, path=path, clip=tuple(clip.items()))


def with_clip(item: Medium, clip: Mapping[str, float], field: str) -> Medium:
    """The video with bounds that are said beside it. Raises `RowError` where it has others of its own."""
    if clip and item.clip and dict(item.clip) != clip:
        raise RowError(field, f"has the bounds {dict(item.clip)} and {dict(clip)}", "leave one of the two out")
    return dataclasses.replace(item, clip=tuple(clip.items())) if clip else item


def _path(value: Any, field: str, kind: Kind) -> str:
    if not isinstance(value, str) or not value.strip():
        why = f"must name {'a video' if kind == 'video' else 'an image'} file, got {kind_of(value)}"
        raise RowError(field, why, f"write embedded {kind}s to files and give their paths")
    return value


def media_path(value: Any, field: str, notes: Notes) -> str:
    """The path or uri of a single video file or folder. Raises `RowError` for anything else."""
    found = medium(value, field, notes, "video")
    if found.frames or found.clip:
        raise RowError(field, "is a list of frames or part of a video", "name a file, or a folder of frames")
    return found.path


def take_media(fields: Fields, notes: Notes) -> list[Medium]:
    """Take the videos and images out of the columns `videos`, `video`, `images` and `image`, and the `fps` of frames."""
    found: list[Medium] = []
    for name, kind in COLUMNS:
        value = fields.pop(name, None)
        if has_content(value):
            several = isinstance(value, list) and not (name == "video" and _are_images(value))
            found += [medium(item, name, notes, kind) for item in (value if several else [value])]
    if any(item.frames and item.fps is None for item in found) and has_content(fields.get("fps")):
        rates = fields.pop("fps")
        rates = rates if isinstance(rates, list) else [rates] * len(found)
        if len(rates) != len(found):
            raise RowError("fps", f"has {len(rates)} rates for {len(found)} videos and images", "give one number for each")
        found = [
            dataclasses.replace(item, fps=rate) if item.frames and item.fps is None else item
            for item, rate in zip(found, rates, strict=True)
        ]
    return found


def _are_images(value: list[Any]) -> bool:
    return all(isinstance(item, str) and item.lower().endswith(IMAGE_SUFFIXES) for item in value)
