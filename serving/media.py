"""Which urls an endpoint reads: `data:` always, `file:` below its media root, http(s) only from listed domains.

This module imports vLLM and is imported by its plugin (serving/video_loader.py).
"""

from __future__ import annotations

import pathlib
import urllib.request
from typing import Any

from urllib3.util import parse_url
from vllm.multimodal.media import MediaConnector

from serving.refusals import unusable_message
from vidalign.errors import VideoError


class PolicyMediaConnector(MediaConnector):
    """vLLM's connector with stricter rules.

    vLLM's own fetches from any host unless domains are listed, and answers 500 for a missing file. vLLM reports a `ValueError` as a
    400 response with its message.
    """

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        self.check(url)
        return super().load_from_url(url, media_io, fetch_timeout=fetch_timeout)

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        self.check(url)
        return await super().load_from_url_async(url, media_io, fetch_timeout=fetch_timeout)

    def check(self, url: str) -> None:
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
            self._check_file(parsed.netloc or "", parsed.path or "")
        else:
            raise ValueError(f"media urls must begin with data: or file:, got {url[:40]!r}")

    def _check_file(self, host: str, path: str) -> None:
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
        if not file.is_file():
            raise ValueError(unusable_message(VideoError("unreadable", f"{file} is not a file")))
