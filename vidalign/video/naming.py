"""The names of what a prompt shows. Every table, cache and message of a run knows a video, frames or an image by one text.

    a video                   its path or uri, as it is written in the row
    a part of a video         uri#t=START,END                  seconds, as in W3C Media Fragments 1.0; either may be left out
    frames in a folder        uri#fps=RATE[&t=START,END]       in natural order (frame_2 before frame_10), RATE frames a second
    frames in a list          frames:["uri", …]#fps=RATE[&t=START,END]
    an image                  uri#image

Where frames are chosen by the question that is asked about them (`FrameChoice`), the name of each but an image ends in
`ask=QUESTION`, %-escaped: `asked_about` puts it there, and with it the question is part of every key and reaches every decoder.

A local file with a fragment is named by a file: uri, so that a "#" in a path is never read as one. This module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import urllib.parse
import urllib.request
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["video", "folder", "list", "image"]

LISTED = "frames:"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_SECONDS = r"\d+(?:\.\d+)?"
_FRAGMENT = re.compile(
    rf"(?P<image>image)|(?:fps=(?P<fps>{_SECONDS}))?(?:(?:^|&)t=(?P<start>{_SECONDS})?(?:,(?P<end>{_SECONDS}))?)?"
    r"(?:(?:^|&)ask=(?P<asked>[^&]+))?"
)
STORES = ("file", "http", "https", "s3", "gs", "gcs")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+")  # of two letters or more: C:\ is a drive
_PLACE = re.compile("<video>|<image>")
_RUNS = re.compile(r"(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Visual:
    """What a name stands for.

    Attributes:
        uris: where it is; several only for a list of frames.
        fps: how many frames there are for one second; None except for frames.
        start_s, end_s: the bounds of the part that is shown, in seconds; `end_s` None means to the end.
        asked: the question by which its frames are chosen; "" where none decides.
    """

    kind: Kind
    uris: tuple[str, ...]
    fps: float | None = None
    start_s: float = 0.0
    end_s: float | None = None
    asked: str = ""

    @property
    def is_part(self) -> bool:
        """Whether less than the whole is shown."""
        return bool(self.start_s) or self.end_s is not None

    @property
    def is_frames(self) -> bool:
        """Whether these are frames in files of their own."""
        return self.fps is not None

    @property
    def fragment(self) -> str:
        """What the name says after its "#"; empty for a whole video."""
        return "image" if self.kind == "image" else fragment_of(self.fps, self.start_s, self.end_s, self.asked)


def fragment_of(fps: float | None, start_s: float, end_s: float | None, asked: str = "") -> str:
    """The fragment of frames, of a part of a video, or of one whose frames are chosen by a question."""
    end = "" if end_s is None else f",{_number(end_s)}"
    bounds = f"t={_number(start_s)}{end}" if start_s or end else ""
    question = f"ask={urllib.parse.quote(asked, safe='')}" if asked else ""
    return "&".join(part for part in ("" if fps is None else f"fps={_number(fps)}", bounds, question) if part)


def without_question(name: str) -> str:
    """The name without the question that chooses its frames, as the row has it: a file by its path."""
    bare = asked_about(name, "")
    path = local_path(bare) if bare != name and not visual_of(bare).fragment else None
    return bare if path is None else path


def stated(question: str) -> str:
    """A question as names hold it: without the places of videos and images, its words one space apart."""
    return " ".join(_PLACE.sub(" ", question).split())


def asked_about(name: str, question: str) -> str:
    """The name with the question by which its frames are chosen, in place of any other; "" takes it out. Images have none."""
    visual, question = visual_of(name), stated(question)
    return (
        name if visual.kind == "image" or visual.asked == question else name_of(dataclasses.replace(visual, asked=question))
    )


def name_of(visual: Visual) -> str:
    """The name that `visual_of` reads."""
    if not visual.fragment:
        return visual.uris[0]
    listed = LISTED + json.dumps(list(visual.uris), ensure_ascii=False)
    base = listed if visual.kind == "list" else as_uri(visual.uris[0])
    return f"{base}#{visual.fragment}"


def visual_of(name: str) -> Visual:
    """What a name stands for. Every text is a name: one without a known fragment is that of a whole video."""
    base, fragment = split(name)
    match = _FRAGMENT.fullmatch(fragment)
    if match is None or not fragment:
        return Visual(kind="video", uris=(name,))
    if match["image"]:
        return Visual(kind="image", uris=(base,))
    fps = float(match["fps"]) if match["fps"] else None
    listed = base.startswith(LISTED)
    return Visual(
        kind="list" if listed else "video" if fps is None else "folder",
        uris=tuple(json.loads(base.removeprefix(LISTED))) if listed else (base,),
        fps=fps,
        start_s=float(match["start"] or 0),
        end_s=float(match["end"]) if match["end"] else None,
        asked=urllib.parse.unquote(match["asked"] or ""),
    )


def split(name: str) -> tuple[str, str]:
    """A name without its fragment, and the fragment; "" if it has none."""
    base, _, fragment = name.rpartition("#")
    match = _FRAGMENT.fullmatch(fragment) if fragment and ("://" in base or base.startswith("data:")) else None
    if match is None or (match["fps"] and not float(match["fps"])) or (base.startswith(LISTED) and not _is_list(base)):
        return name, ""
    return base, fragment


def _is_list(base: str) -> bool:
    try:
        uris = json.loads(base.removeprefix(LISTED))
    except ValueError:
        return False
    return isinstance(uris, list) and bool(uris) and all(isinstance(uri, str) for uri in uris)


def as_uri(video: str) -> str:
    """A uri as it is; an absolute path as a file: uri."""
    return video if "://" in video else pathlib.Path(video).absolute().as_uri()


def local_path(uri: str) -> str | None:
    """The path of a path or file: uri; None for any other uri. Raises `ValueError` for what is no uri."""
    if "://" not in uri:
        return uri
    parts = urllib.parse.urlsplit(uri)
    return urllib.request.url2pathname(parts.path) if parts.scheme == "file" else None


def mistyped(uri: str) -> str:
    """What is wrong with the form of a path or uri, as the rest of a sentence; "" if nothing is. Its file is not looked for."""
    scheme, colon, rest = uri.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        return ""
    if not rest.startswith("//"):
        return f"is no uri without two slashes ({scheme}://…)" if scheme.lower() in STORES and rest[:1] in "/\\" else ""
    if scheme.lower() not in STORES:
        import fsspec

        if scheme.lower() not in fsspec.available_protocols():
            return f"begins with {scheme}://, which is no store that is known; paths and {', '.join(STORES)} are"
    if scheme.lower() != "file" and not urllib.parse.urlsplit(uri).netloc:
        return f"names no host or bucket after {scheme}://"
    return ""


def short(name: str) -> str:
    """A name for messages and pages: long lists are cut."""
    name = asked_about(name, "")
    visual = visual_of(name)
    if visual.kind != "list":
        return name
    return f"{visual.uris[0]} and {len(visual.uris) - 1:,} more frames#{visual.fragment}"


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key that sorts names as people do: by the values of their numbers, "frame_2" before "frame_10"."""
    parts = [part for part in _RUNS.split(name) if part]
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts], name


def images_in(folder: str) -> list[str]:
    """The paths of the images in a folder, in natural order; other files and hidden ones do not count. Raises `OSError`."""
    names = (name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
    return [os.path.join(folder, name) for name in sorted(names, key=natural)]


def _number(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")
