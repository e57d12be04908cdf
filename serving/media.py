"""Which urls an endpoint reads: `data:` always, `file:` below its media root, http(s) only from listed domains.

A fragment says which part of a video is shown (#t=START,END), and of frames how many there are a second (#fps=RATE): those in a folder
(file:) or in a list (data:video/jpeg;base64,FRAME,FRAME,…). Images come in the size of the endpoint's FrameSpec, as frames do.

This module imports vLLM and is imported by its plugin (serving/video_loader.py).
"""

from __future__ import annotations

import pathlib
import urllib.request
from typing import Any

import PIL.Image
import pybase64
from urllib3.util import parse_url
from vllm.multimodal.media import ImageMediaIO, MediaConnector, MediaIO, MediaWithBytes

from serving.frames import FrameSpecLoader
from serving.refusals import unusable_message
from vidalign.errors import VideoError
from vidalign.video import naming


class PolicyMediaConnector(MediaConnector):
    """vLLM's connector with stricter rules.

    vLLM's own fetches from any host unless domains are listed, and answers 500 for a missing file. vLLM reports a `ValueError` as a
    400 response with its message.
    """

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        base, reader = self._reader(url, media_io)
        return super().load_from_url(base, reader, fetch_timeout=fetch_timeout)

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        base, reader = self._reader(url, media_io)
        return await super().load_from_url_async(base, reader, fetch_timeout=fetch_timeout)

    def _reader(self, url: str, media_io: Any) -> tuple[str, Any]:
        """The url without its fragment, and what reads it. Raises `ValueError` for a url that this endpoint does not read."""
        base, fragment = naming.split(url)
        visual = naming.visual_of(url)
        self.check(base, of_frames=visual.is_frames)
        if isinstance(media_io, ImageMediaIO):
            return base, ImageReader(dict(self.media_io_kwargs.get("video", {})))
        return (base, PartReader(media_io, fragment, visual)) if fragment else (url, media_io)

    def check(self, url: str, *, of_frames: bool = False) -> None:
        """Raises `ValueError` for a url that this endpoint does not read."""
        if url[:5].lower() == "data:":
            if not url.partition(",")[0].endswith(";base64"):
                raise ValueError("a data: url must be base64, as in data:video/mp4;base64,AAAA")
            return
        parsed = parse_url(url)  # the parser that vLLM itself uses, so that both see the same path
        if parsed.scheme in ("http", "https"):
            if not self.allowed_media_domains:
                raise ValueError(
                    "this endpoint does not fetch over http(s); send the video as data:video/mp4;base64,… or as a file: url "
                    "below its media root"
                )
        elif parsed.scheme == "file":
            self._check_file(parsed.netloc or "", parsed.path or "", of_frames)
        else:
            raise ValueError(f"media urls must begin with data: or file:, got {url[:40]!r}")

    def _check_file(self, host: str, path: str, of_frames: bool) -> None:
        root = self.allowed_local_media_path
        if root is None:
            raise ValueError(
                "this endpoint has no media root, so it cannot read file: urls; send the video as data:video/mp4;base64,…, or "
                "start the endpoint with serve.media_root"
            )
        file = pathlib.Path(urllib.request.url2pathname(path))
        if host or root not in file.resolve().parents:
            raise ValueError(f"file: urls must be below the endpoint's media root (serve.media_root), got {host}{path}")
        if not file.exists():
            raise ValueError(unusable_message(VideoError("missing", f"no file at {file}")))
        if not (file.is_dir() if of_frames else file.is_file()):
            kind = "folder" if of_frames else "file"
            raise ValueError(unusable_message(VideoError("unreadable", f"{file} is not a {kind}")))


class PartReader(MediaIO[Any]):
    """Reads a part of a video, or frames in files of their own, in the place of vLLM's reader of videos."""

    def __init__(self, whole: Any, fragment: str, visual: naming.Visual) -> None:
        self._fragment, self._visual = fragment, visual
        self._loader: FrameSpecLoader = whole.video_loader
        self._options = {"num_frames": whole.num_frames, **whole.kwargs}
        self._options |= {"start_s": visual.start_s, "end_s": visual.end_s}

    def load_bytes(self, data: bytes) -> Any:
        if self._visual.is_frames:
            raise ValueError("frames (#fps=…) are a folder (file:) or a list (data:video/jpeg;base64,FRAME,FRAME,…)")
        return self._held(self._loader.load_bytes(data, **self._options), data)

    def load_base64(self, media_type: str, data: str) -> Any:
        if not self._visual.is_frames:
            return self.load_bytes(pybase64.b64decode(data, validate=True))
        if media_type.lower() != "video/jpeg":
            raise ValueError("a list of frames (#fps=…) is data:video/jpeg;base64,FRAME,FRAME,…")
        return self._frames([pybase64.b64decode(frame, validate=True) for frame in data.split(",")])

    def load_file(self, filepath: pathlib.Path) -> Any:
        if not self._visual.is_frames:
            return self.load_bytes(filepath.read_bytes())
        paths = naming.images_in(str(filepath))
        if not paths:
            raise ValueError(unusable_message(VideoError("too_few_frames", f"{filepath} holds no images")))
        return self._frames([pathlib.Path(path).read_bytes() for path in paths])

    def _frames(self, frames: list[bytes]) -> Any:
        assert self._visual.fps is not None
        return self._held(self._loader.load_frames(frames, self._visual.fps, **self._options), *frames)

    def _held(self, video: Any, *data: bytes) -> Any:
        """The frames with what vLLM knows them by in its caches: without the fragment, one part would be taken for another."""
        sizes = ",".join(str(len(each)) for each in data)
        return MediaWithBytes(video, b"".join([f"{self._fragment} {sizes} ".encode(), *data]))


class ImageReader(MediaIO[Any]):
    """Reads an image in the size of a FrameSpec, given as the endpoint's options for videos, in the place of vLLM's reader."""

    def __init__(self, options: dict[str, Any]) -> None:
        options.pop("video_backend", None)
        self._options = options

    def load_bytes(self, data: bytes) -> Any:
        return MediaWithBytes(PIL.Image.fromarray(FrameSpecLoader().load_image(data, **self._options)), data)

    def load_base64(self, media_type: str, data: str) -> Any:
        return self.load_bytes(pybase64.b64decode(data, validate=True))

    def load_file(self, filepath: pathlib.Path) -> Any:
        return self.load_bytes(filepath.read_bytes())
