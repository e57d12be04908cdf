"""The videos of a run, for an endpoint that is asked about them."""

from __future__ import annotations

import ipaddress
import os
import pathlib

from vidalign import mirror
from vidalign.config.loading import load_config
from vidalign.config.run import ServeConfig
from vidalign.data.source import folder_of
from vidalign.storage import is_uri

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")
MAX_LOOKED_AT = 2000  # files, on the way to the first video


def with_media_root(target: str, serve: ServeConfig) -> ServeConfig:
    """`serve` with the folder of a run's videos as its media root, where none is named and only this machine reaches the endpoint."""
    config = pathlib.Path(mirror.opened(target)) / "config.yaml"
    if serve.media_root is not None or not _is_loopback(serve.host) or not config.is_file():
        return serve
    data = load_config(config).data
    root = data.video_root or str(folder_of(data.eval or data.train))
    if is_uri(root) or root.startswith("hf:") or not os.path.isdir(root):
        return serve
    return serve.model_copy(update={"media_root": str(pathlib.Path(root).absolute())})


def example_url(media_root: str | None) -> str:
    """A url of a video that an endpoint reads, for a line that works as it is printed; a made-up one where there is none."""
    if not media_root:
        return "data:video/mp4;base64,…"
    seen = 0
    for folder, folders, names in os.walk(media_root):
        folders.sort()
        for name in sorted(names):
            seen += 1
            if name.lower().endswith(SUFFIXES):
                return pathlib.Path(folder, name).absolute().as_uri()
        if seen > MAX_LOOKED_AT:
            break
    return f"file://{media_root}/clip.mp4"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
