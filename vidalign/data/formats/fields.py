"""The columns of one row of a source: what counts as content, where its videos are, and which rows cannot be imported.

`Notes` counts what a source holds and a vidalign row does not, with one sentence for each, for the summary of an import.
"""

from __future__ import annotations

import collections
import pathlib
from typing import Any, TypeAlias

from vidalign.errors import RowError

Fields: TypeAlias = dict[str, Any]
Notes = collections.Counter[str]

VIDEO_SUFFIXES = (
    ".3gp",
    ".avi",
    ".flv",
    ".gif",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
)
ONE_QUESTION = "a row holds one question: give each turn its own row, or remove the row"


def has_content(value: Any) -> bool:
    """False for null and for empty texts, lists and objects. Zero and false are content."""
    return value is not None and value not in ("", [], {}, ())


def kind_of(value: Any) -> str:
    """The type of a value, for messages."""
    return "nothing" if value is None else type(value).__name__


def media_path(value: Any, field: str, notes: Notes, *, is_video: bool = True) -> str:
    """The path or uri of a video, given as a text or as {"path"} or {"url"}. An image field may name a video too.

    Raises:
        RowError: the value is embedded bytes, a list of frames or an image.
    """
    if isinstance(value, dict) and not has_content(value.get("bytes")):
        named = next((name for name in ("path", "url") if has_content(value.get(name))), "path")
        for name in sorted(name for name in value if name != named and has_content(value[name])):
            notes[f"'{name}' of a video, which is not used"] += 1
        value = value.get(named)
    if isinstance(value, list):
        raise RowError(
            field, f"is a list of {len(value)} frames", "join the frames into a video file (ffmpeg) and name that file"
        )
    if not isinstance(value, str) or not value.strip():
        why = f"must name a video file, got {kind_of(value)}"
        raise RowError(field, why, "write embedded videos to files and give their paths")
    if not is_video and pathlib.PurePath(value).suffix.lower() not in VIDEO_SUFFIXES:
        raise RowError(field, f"names an image ({value})", "vidalign trains on videos only: remove the row")
    return value


def take_videos(fields: Fields, notes: Notes) -> list[str]:
    """Take the videos out of the columns `videos`, `video`, `images` and `image`."""
    videos = []
    for name in ("videos", "video", "images", "image"):
        value = fields.pop(name, None)
        if has_content(value):
            values = value if isinstance(value, list) else [value]
            videos += [media_path(item, name, notes, is_video=name.startswith("video")) for item in values]
    return videos


def refuse_worse_only(fields: Fields, name: str) -> None:
    """Raises `RowError` for a row that holds a single response, marked as bad."""
    if fields.get(name) is False:
        raise RowError(
            name, "is false: the row holds a bad response and no better one", "give both responses, or remove the row"
        )


def refuse_history(fields: Fields) -> None:
    """Raises `RowError` for earlier turns in the column `history`."""
    if has_content(fields.get("history")):
        raise RowError("history", "holds earlier turns", ONE_QUESTION)
