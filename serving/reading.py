"""Which urls an endpoint reads: `data:` always, `file:` below its media root, http(s) only from listed domains.

A fragment says which part of a video is shown (#t=START,END), and of frames how many there are a second (#fps=RATE): those in a folder
(file:) or in a list (data:video/jpeg;base64,FRAME,FRAME,…).

    url ── local files, under a name of vidalign.video.naming ── serving.decoders ── frames, known by their content
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import re
import urllib.parse
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pybase64

from serving import fetching
from serving.decoders import Decoders
from vidalign.config.serving import MediaConfig
from vidalign.errors import VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import naming

if TYPE_CHECKING:
    from vidalign.video.clip import Clip

FRAMES = "video/jpeg"
SHOWN = 200  # characters of a url in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalMedia:
    """What a url stands for on this machine: a name, or the bytes of a whole video."""

    visual: naming.Visual
    name: str = ""
    data: bytes = b""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads what clients send. `root` is the media root."""

    decoders: Decoders
    config: MediaConfig
    root: pathlib.Path | None

    async def clip_of(
        self, url: str, spec: FrameSpec, backend: Backend = DEFAULT_BACKEND, *, image: bool = False
    ) -> tuple[Clip, str]:
        """The clip of a url, and what it is known by.

        Raises:
            ValueError: this endpoint does not read the url.
            VideoError: what is there cannot be used.
            DataError, ClusterError: it cannot be decoded here now.
        """
        async with self._local(url, image) as local:
            try:
                if local.name:
                    return await self.decoders.clip_of(local.name, spec, backend)
                return await self.decoders.clip_of_bytes(local.data, lambda paths: str(paths[0]), spec, backend)
            except VideoError as error:
                raise _without_paths(error, local, url) from None

    @contextlib.asynccontextmanager
    async def _local(self, url: str, image: bool) -> AsyncIterator[LocalMedia]:
        """Local files of a url, while the block lasts."""
        base, _ = naming.split(url)
        visual = naming.visual_of(url) if base != url else naming.Visual(kind="video", uris=(url,))
        if image:
            visual = naming.Visual(kind="image", uris=(url,))
        scheme = url[:8].partition(":")[0].lower()
        if scheme == "data":
            async with self._data(base, visual) as local:
                yield local
        elif scheme in ("http", "https"):
            if visual.is_frames:
                raise ValueError("frames (#fps=…) are a folder (file:) or a list (data:video/jpeg;base64,FRAME,FRAME,…)")
            async with self.decoders.files([b""]) as [path]:
                await fetching.fetch(base, self.config, path)
                yield _named(visual, [path])
        elif scheme == "file":
            path = await asyncio.to_thread(self.file_of, base, of_frames=visual.is_frames)
            yield _named(visual, [path])
        else:
            raise ValueError(f"media urls must begin with data:, file: or https:, got {url[:40]!r}")

    @contextlib.asynccontextmanager
    async def _data(self, url: str, visual: naming.Visual) -> AsyncIterator[LocalMedia]:
        head, comma, text = url.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data: url must be base64, as in data:video/mp4;base64,AAAA")
        kind = head[5:].partition(";")[0].lower()
        if kind == FRAMES and not visual.is_frames and visual.kind != "image":
            if self.config.frames_fps is None:
                raise ValueError(
                    "frames need their rate: data:video/jpeg;base64,FRAME,FRAME,…#fps=RATE, or serve.media.frames_fps"
                )
            visual = dataclasses.replace(visual, fps=self.config.frames_fps)
        if visual.is_frames and kind != FRAMES:
            raise ValueError("a list of frames (#fps=…) is data:video/jpeg;base64,FRAME,FRAME,…")
        contents = await asyncio.to_thread(_decoded, text.split(",") if visual.is_frames else [text])
        if visual.kind == "video" and not visual.fragment:
            yield LocalMedia(data=contents[0], visual=visual)
            return
        async with self.decoders.files(contents) as paths:
            yield _named(visual, paths)

    def file_of(self, url: str, *, of_frames: bool = False) -> pathlib.Path:
        """The file below the media root that a file: url means: as it is written, or with its %-escapes decoded.

        Raises:
            ValueError: this endpoint does not read it.
            VideoError: it is not there, or is no file.
        """
        if self.root is None:
            raise ValueError(
                "this endpoint has no media root, so it cannot read file: urls; send the video as data:video/mp4;base64,…, or "
                "start the endpoint with serve.media_root"
            )
        outside = ValueError(f"file: urls must be below the endpoint's media root (serve.media_root), got {url[:SHOWN]}")
        found = re.fullmatch(r"(?i)file:(?://(?:localhost)?(?=/))?(/.*)", url, re.DOTALL)
        if found is None or "\0" in urllib.parse.unquote(found[1]):
            raise outside
        candidates = [pathlib.Path(path) for path in dict.fromkeys([urllib.parse.unquote(found[1]), found[1]])]
        try:
            there = [path for path in candidates if self.root in path.resolve().parents and path.exists()]
            if not there and self.root not in candidates[0].resolve().parents:
                raise outside
        except (OSError, RuntimeError):  # a name that is too long, or a circle of links
            raise outside from None
        if not there:
            raise VideoError("missing", f"no file at {url[:SHOWN]}")
        if not (there[0].is_dir() if of_frames else there[0].is_file()):
            raise VideoError("unreadable", f"{url[:SHOWN]} is not a {'folder' if of_frames else 'file'}")
        return there[0].resolve()


def _named(visual: naming.Visual, paths: list[pathlib.Path]) -> LocalMedia:
    uris = tuple(path.as_uri() for path in paths)
    kind = visual.kind
    if visual.is_frames:
        kind = "folder" if paths[0].is_dir() else "list"
    local = dataclasses.replace(visual, kind=kind, uris=uris)
    return LocalMedia(name=naming.name_of(local) if local.fragment else str(paths[0]), visual=local)


def _decoded(texts: list[str]) -> list[bytes]:
    try:
        return [pybase64.b64decode(text, validate=True) for text in texts]
    except ValueError:
        raise ValueError("what follows the comma of the data: url is not base64") from None


def _without_paths(error: VideoError, local: LocalMedia, url: str) -> VideoError:
    """The error with what the client sent in the place of this machine's paths."""
    is_file = url[:5].lower() == "file:"
    shown = url[:SHOWN] if is_file else "the image" if local.visual.kind == "image" else "the video"
    if not local.name:
        return VideoError(error.reason, re.sub(r"/\S*/incoming-\S*", lambda _: shown, error.message))
    said = {local.name: shown}
    for number, uri in enumerate(local.visual.uris):
        path = naming.local_path(uri) or uri
        said |= dict.fromkeys((uri, path), f"frame {number}" if local.visual.kind == "list" else shown)
    known = [re.escape(inside) for inside in sorted(said, key=len, reverse=True)]
    folders = {path if path.is_dir() else path.parent for path in map(pathlib.Path, said) if path.is_absolute()}
    known += [re.escape(str(folder)) + r"/[^\s,;:]*" for folder in folders]
    # At once, because what the client sent may hold the path itself.
    message = re.sub("|".join(known), lambda found: said.get(found[0], shown), error.message)
    return VideoError(error.reason, message)
