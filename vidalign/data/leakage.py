"""Videos that two splits of a data set share: what is tested must not be trained on.

A video is the same under another relative path, as a link, as a file: uri, or as a copy with the same bytes. Frames in a folder or a
list are shared if a single one of them is, by its path, or if all of them are, as copies.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import posixpath
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

from vidalign.video import naming

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leak:
    """A video of one split that an earlier split also holds. `other` is its location there, which differs for a copy."""

    split: int
    video: str
    where: str
    other_split: int
    other: str
    other_where: str

    @property
    def is_copy(self) -> bool:
        """Whether the two splits hold different files with the same bytes."""
        return self.video != self.other


def locate(video: str, root: pathlib.Path) -> str:
    """The real path of a local video, however it is named and whatever part of it; the uri of a remote one, in one spelling.

    Frames in a list are one text that holds the place of each.
    """
    uris = naming.visual_of(video).uris
    paths = [(uri, naming.local_path(uri)) for uri in uris]
    places = [plain_uri(uri) if path is None else os.path.realpath(root / path) for uri, path in paths]
    return places[0] if len(places) == 1 else naming.LISTED + json.dumps(places)


def plain_uri(uri: str) -> str:
    """A remote uri in one spelling. Only http has rules that make two spellings one: case of the host, port, escapes, dots, fragment.

    Any other uri, and one that is broken, stays as it is.
    """
    try:
        parts = urllib.parse.urlsplit(uri)
        port = parts.port
    except ValueError:
        return uri
    if parts.scheme not in DEFAULT_PORTS or "@" in parts.netloc:
        return uri
    host = parts.hostname or ""
    place = host if port in (None, DEFAULT_PORTS[parts.scheme]) else f"{host}:{port}"
    path = urllib.parse.quote(posixpath.normpath(urllib.parse.unquote(parts.path) or "/"))
    return urllib.parse.urlunsplit((parts.scheme, place, path, parts.query, ""))


def content_hash(path: str) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_leaks(splits: Sequence[Mapping[str, str]], *, digest: Callable[[str], str] = content_hash) -> list[Leak]:
    """Videos that occur in more than one split, one leak for every later split that has them, in the order of the splits.

    Only files whose size also occurs in another split are read, each once. Missing files are compared by path.

    Args:
        splits: the videos of each split, as `locate` gives them, each with the place of its first row.
        digest: gives equal strings for the paths of files with equal content.
    """
    digest = functools.cache(digest)
    alike, frames = _of_equal_size(splits), _frames_of(splits)
    first: dict[str, tuple[int, str, str]] = {}
    leaks = []
    for number, videos in enumerate(splits):
        for video, where in videos.items():
            keys = [digest(video)] if video in alike else [video, *frames.get(video, [])]
            found = [first.setdefault(key, (number, video, where)) for key in keys]
            earlier = next((place for place in found if place[0] != number), None)
            if earlier is not None:
                other_split, other, other_where = earlier
                leaks.append(
                    Leak(
                        split=number,
                        video=video,
                        where=where,
                        other_split=other_split,
                        other=other,
                        other_where=other_where,
                    )
                )
    return leaks


def _frames_of(splits: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Of each list or local folder of frames: its frames' real paths, and their joint hash if another split has as many bytes."""
    found = {video: paths for videos in splits for video in videos if (paths := _paths(video))}
    weights = {video: (len(paths), sum(map(_size, paths))) for video, paths in found.items()}
    numbers: dict[tuple[int, int], set[int]] = collections.defaultdict(set)
    for number, videos in enumerate(splits):
        for video in videos.keys() & weights.keys():
            numbers[weights[video]].add(number)
    for video, paths in found.items():
        if len(numbers[weights[video]]) > 1 and all(map(_size, paths)):
            paths.append(hashlib.sha256("".join(map(content_hash, paths)).encode()).hexdigest())
    return found


def _paths(video: str) -> list[str]:
    if video.startswith(naming.LISTED):
        return list(json.loads(video.removeprefix(naming.LISTED)))
    if "://" not in video and os.path.isdir(video):
        return [os.path.realpath(path) for path in naming.images_in(video)]
    return []


def _of_equal_size(splits: Sequence[Mapping[str, str]]) -> set[str]:
    """Readable files whose size is shared by at least two files, in at least two splits."""
    paths: dict[int, set[str]] = collections.defaultdict(set)
    numbers: dict[int, set[int]] = collections.defaultdict(set)
    sizes = {video: _size(video) for videos in splits for video in videos}
    for number, videos in enumerate(splits):
        for video in videos:
            size = sizes[video]
            if size:
                paths[size].add(video)
                numbers[size].add(number)
    return {video for size in paths if len(paths[size]) > 1 and len(numbers[size]) > 1 for video in paths[size]}


def _size(video: str) -> int:
    """Size in bytes of a local file that can be read; 0 for everything else."""
    if "://" in video or not os.path.isfile(video) or not os.access(video, os.R_OK):
        return 0
    return os.path.getsize(video)
