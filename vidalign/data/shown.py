"""What a row shows and says before its question: names of videos and images (`vidalign.video.naming`), and the earlier turns.

    video   a file's path or uri                            its name
            the same with clip {"start", "end"}             uri#t=START,END
            a folder of images with fps                     uri#fps=RATE
            a list of images with fps                       frames:[…]#fps=RATE
    videos  several of these, each with its own fps and clip
    images  paths or uris                                   uri#image

`<video>` and `<image>` in the texts of the user say where each one stands, in order. Without any, all come first.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vidalign.errors import RowError
from vidalign.records import Turn
from vidalign.video import naming
from vidalign.video.naming import Visual

PLACE = re.compile(r"<video>|<image>")
PLACES = {"video": "<video>", "image": "<image>"}


def names(row: Any, root: pathlib.Path | str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of a row's videos and of its images. Relative paths are relative to `root`, a folder or a uri."""
    videos = [(row.video, row.fps, row.clip)] if row.video is not None and not _repeats(row) else []
    for item in row.videos:
        videos.append((item, None, None) if isinstance(item, str | list) else _parts(item))
    images = (Visual(kind="image", uris=(naming.visual_of(_place(image, root)).uris[0],)) for image in row.images)
    return tuple(_video_name(*video, root) for video in videos), tuple(naming.name_of(image) for image in images)


def rejected_name(row: Any, root: pathlib.Path | str) -> str:
    """The name of a row's other clip; "" where it has none."""
    item = row.rejected_video
    if item is None:
        return ""
    return _video_name(item, None, None, root) if isinstance(item, str | list) else _video_name(*_parts(item), root)


def _parts(item: Any) -> tuple[Any, Any, Any]:
    return item.video, item.fps, item.clip


def _repeats(row: Any) -> bool:
    """Whether `video` is only the first of `videos`, as in a run's own tables."""
    return bool(row.videos) and row.video == row.videos[0] and row.fps is None and row.clip is None


def num_videos(row: Any) -> int:
    """How many videos a row shows."""
    return len(row.videos) + (row.video is not None and not _repeats(row))


def _video_name(video: str | list[str], fps: float | None, clip: Any, root: pathlib.Path | str) -> str:
    if isinstance(video, list):
        visual = Visual(kind="list", uris=tuple(naming.as_uri(_place(frame, root)) for frame in video), fps=fps)
    else:
        visual = naming.visual_of(naming.without_question(_place(video, root)))  # as of the pairs of a run
        if fps is not None and visual.fps is None and _is_folder(visual.uris[0]):  # of a file, fps says nothing new
            visual = dataclasses.replace(visual, kind="folder", fps=fps)
    if clip is not None:
        visual = dataclasses.replace(visual, start_s=clip.start, end_s=clip.end)
    return naming.name_of(visual)


def form_of(name: str) -> dict[str, Any]:
    """The fields `video`, `fps` and `clip` of a row that say what a name says."""
    visual = naming.visual_of(naming.without_question(name))
    form: dict[str, Any] = {"video": list(visual.uris) if visual.kind == "list" else visual.uris[0]}
    form |= {"fps": visual.fps} if visual.fps is not None else {}
    bounds = {"start": visual.start_s} | ({"end": visual.end_s} if visual.end_s is not None else {})
    return form | ({"clip": bounds} if visual.is_part else {})


def missing_file(name: str) -> str | None:
    """The first local file or folder of a name that is not there; None if all are, or if it cannot be known here."""
    visual = naming.visual_of(name)
    there = os.path.isdir if visual.kind == "folder" else os.path.isfile
    paths = (naming.local_path(uri) for uri in visual.uris)
    return next((path for path in paths if path is not None and not there(path)), None)


def _place(video: str, root: pathlib.Path | str) -> str:
    if "://" in video:
        return video
    if isinstance(root, str) and not video.startswith("/"):  # a store's, in which a path is not made shorter
        return f"{root.rstrip('/')}/{video}"
    return str((pathlib.Path(root) / video).absolute())


def _is_folder(uri: str) -> bool:
    """Whether this is a folder, or was one: what is gone keeps its name, so that a run may go on without it."""
    path = naming.local_path(uri)
    if path is None or os.path.exists(path):
        return path is not None and os.path.isdir(path)
    return not re.search("[A-Za-z]", pathlib.PurePath(path).suffix)


def shows_nothing(fields: dict[str, Any]) -> bool:
    """Whether a row names no video and no image."""
    return all(fields.get(name) in (None, []) for name in ("video", "videos", "images"))


def conversation(row: Any) -> tuple[tuple[Turn, ...], str]:
    """The earlier turns and the question. Places that say what holds without them, all first and in order, are taken out."""
    texts = [turn.content for turn in row.turns if turn.role == "user"] + [row.question]
    spoken = iter(without_usual_places(texts, num_videos(row), len(row.images)))
    turns = tuple(Turn(role=turn.role, content=next(spoken) if turn.role == "user" else turn.content) for turn in row.turns)
    return turns, next(spoken)


def without_usual_places(texts: Sequence[str], num_videos: int, num_images: int) -> list[str]:
    """The texts of the user without their places, if these are one for each video and image, all first and in order."""
    usual = [PLACES["video"]] * num_videos + [PLACES["image"]] * num_images
    match = re.match(r"(?:\s*(?:<video>|<image>))+\s*", texts[0])
    places = [place for text in texts for place in PLACE.findall(text)]
    if match and places == usual == PLACE.findall(match[0]):
        return [texts[0][match.end() :], *texts[1:]]
    return list(texts)


def broken_rules(row: Any) -> Iterator[RowError]:
    """What is wrong with what a row shows, and with its earlier turns."""
    yield from _broken_videos(row)
    roles = [turn.role for turn in row.turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        why = f"have the roles {', '.join(roles)}"
        yield RowError("turns", why, "begin with the user, let the two take turns, and end with the assistant")
    yield from _misplaced(row)
    if not PLACE.sub("", row.question).strip():
        yield RowError(
            "question", "is empty but for the places of videos and images", "write the question, or remove the row"
        )


def _broken_videos(row: Any) -> Iterator[RowError]:
    if row.rejected_video is not None and (num_videos(row) != 1 or row.images):
        why = f"stands beside {num_videos(row)} videos and {len(row.images)} images"
        yield RowError("rejected_video", why, "leave it out of rows that show anything else than one video")
    elif row.rejected_video is not None:
        yield from _broken_item("rejected_video", row.rejected_video)
        if not isinstance(row.rejected_video, list) and _same_place(rejected_name(row, "")) in map(
            _same_place, names(row, "")[0]
        ):
            yield RowError(
                "rejected_video", "is the video of the row itself", "give another video or part, or leave the field out"
            )
    if row.video is not None and row.videos and not _repeats(row):
        yield RowError("videos", "stands beside 'video'", "put all videos into 'videos', or leave one of the two out")
    elif row.video is None and (row.fps is not None or row.clip is not None):
        name = "fps" if row.fps is not None else "clip"
        yield RowError(name, "stands beside 'videos'", f'put it into its video: {{"video": …, "{name}": …}}')
    yield from _broken_video("", row)
    for number, item in enumerate(row.videos):
        yield from _broken_item(f"videos[{number}]", item)


def _same_place(name: str) -> str:
    """A name in which a local path is as short as it can be: ./a.mp4 is a.mp4."""
    visual = naming.visual_of(name)
    paths = map(naming.local_path, visual.uris)
    uris = tuple(uri if path is None else os.path.normpath(path) for uri, path in zip(visual.uris, paths, strict=True))
    return naming.name_of(dataclasses.replace(visual, uris=uris))


def _broken_item(place: str, item: Any) -> Iterator[RowError]:
    if isinstance(item, list):
        yield RowError(place, "is a list of frames without 'fps'", 'write {"video": [frames], "fps": frames a second}')
    elif not isinstance(item, str):
        yield from _broken_video(f"{place}.", item)


def _broken_video(place: str, video: Any) -> Iterator[RowError]:
    """What is wrong with one video, its fps and its clip."""
    if isinstance(video.video, list) and video.fps is None:
        yield RowError(
            f"{place}fps", "is missing; a list of frames needs it", "write how many of the frames there are for one second"
        )
    if video.clip is None:
        return
    if video.clip.end is not None and round(video.clip.end, 6) <= round(video.clip.start, 6):  # as names hold them
        why = f"ends at {video.clip.end:g} s, and begins at {video.clip.start:g} s"
        yield RowError(f"{place}clip", why, "let it end after it begins")
    if isinstance(video.video, str) and naming.visual_of(video.video).is_part:
        yield RowError(f"{place}clip", "stands beside the bounds in the video's uri", "leave one of the two out")


def _misplaced(row: Any) -> Iterator[RowError]:
    """Errors for `<video>` and `<image>` in the texts of the user where they are not one for each video and image."""
    texts: Sequence[tuple[str, str]] = [
        *((f"turns[{number}]", turn.content) for number, turn in enumerate(row.turns) if turn.role == "user"),
        ("question", row.question),
    ]
    found = [(name, place) for name, text in texts for place in PLACE.findall(text)]
    if not found:
        return
    for kind, count in (("video", num_videos(row)), ("image", len(row.images))):
        of_kind = [name for name, place in found if place == PLACES[kind]]
        if len(of_kind) != count:
            yield RowError(
                (of_kind or [found[0][0]])[-1],
                f"the texts of the user hold {len(of_kind)} literal {PLACES[kind]} for {count} {kind}{'s' * (count != 1)} of the row",
                f"write one {PLACES[kind]} where each {kind} stands, or none, with all videos and images first",
            )
