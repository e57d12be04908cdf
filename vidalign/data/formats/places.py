"""The paths of a row's videos and images, rewritten for a file in another folder, and frames in folders."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from vidalign.data.formats.fields import Fields
from vidalign.data.shown import form_of
from vidalign.video.naming import images_in, visual_of


def relocate(video: str, root: pathlib.Path, folder: pathlib.Path) -> str:
    """Rewrite a path relative to `root` for a file in `folder`: relative to `folder` if it lies below it, else absolute.

    Uris and absolute paths are kept, and so is every path if the two folders are the same.
    """
    if "://" in video or os.path.isabs(video) or root.absolute() == folder.absolute():
        return video
    path = pathlib.Path(os.path.abspath(root / video))
    return path.relative_to(folder.absolute()).as_posix() if path.is_relative_to(folder.absolute()) else str(path)


def map_paths(row: Fields, change: Callable[[str], str]) -> Fields:
    """The row with `change` applied to the path or uri of each video, frame and image."""

    def changed(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, list | tuple):
            return [changed(item) for item in value]
        return {**value, "video": changed(value["video"])} if isinstance(value, dict) and "video" in value else value

    return row | {name: changed(row[name]) for name in ("video", "videos", "images") if row.get(name)}


def map_videos(row: Fields, change: Callable[[Fields], Fields]) -> Fields:
    """The row with `change` applied to the form {video, fps, clip} of each video."""
    row = dict(row)
    if row.get("video"):
        row |= change({name: row.pop(name) for name in ("video", "fps", "clip") if name in row})
    if isinstance(row.get("videos"), list | tuple):
        forms = [change(item if isinstance(item, dict) else {"video": item}) for item in row["videos"]]
        row["videos"] = [form["video"] if len(form) == 1 else form for form in forms]
    return row


def with_rate(row: Fields, fps: float, root: pathlib.Path) -> Fields:
    """The row in which each list of frames, and each folder of frames below `root`, without a rate has the rate `fps`."""

    def rated(form: Fields) -> Fields:
        video = form["video"]
        is_frames = isinstance(video, list) or (isinstance(video, str) and "://" not in video and is_folder(root / video))
        return {**form, "fps": fps} if is_frames and form.get("fps") is None else form

    return map_videos(row, rated)


def spelled_out(row: Fields) -> Fields:
    """The row with what its uris say after a "#" (a part, a rate, an image) in fields of their own."""

    def spelled(form: Fields) -> Fields:
        return (
            form_of(form["video"]) | {name: value for name, value in form.items() if name != "video"}
            if isinstance(form["video"], str)
            else form
        )

    if row.get("videos"):
        row = {name: value for name, value in row.items() if name != "video"}  # which may only repeat the first of them
    row = map_videos(row, spelled)
    return row | ({"images": [visual_of(image).uris[0] for image in row["images"]]} if row.get("images") else {})


def is_folder(path: pathlib.Path) -> bool:
    """Whether a path is a folder, or looks like one that is not here."""
    return path.is_dir() or (not path.exists() and not path.suffix)


def with_listed_frames(row: Fields, root: pathlib.Path) -> tuple[Fields, int]:
    """The row with each folder of frames as the list of its images, and how many folders there were."""
    folders = 0

    def listed(form: Fields) -> Fields:
        nonlocal folders
        video = form["video"]
        if not isinstance(video, str) or form.get("fps") is None or not (root / video).is_dir():
            return form
        folders += 1
        return {**form, "video": [os.path.join(video, os.path.basename(path)) for path in images_in(str(root / video))]}

    return map_videos(row, listed), folders


def paths_in(row: Fields) -> Iterator[str]:
    """Every path and uri of a row."""
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    map_paths(row, note)
    yield from found
