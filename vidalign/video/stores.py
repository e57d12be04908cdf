"""Reading from where videos are: http(s), S3, Google Cloud and Azure (pyarrow.fs), and every other protocol that fsspec has.

A store names the version of a file: by its ETag, or else by its size and time. Asked with the version that is known already, a store
says that nothing has changed, and nothing is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

from vidalign.errors import VideoError
from vidalign.storage import SCHEMES, TIMEOUT_S, os_errors, store_of

CHUNK_BYTES = 2**20
NOT_MODIFIED = 304
GONE = (404, 410)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a store says of a file.

    Attributes:
        version: the file's version; "" where the store names none.
        size: in bytes; None where the store does not say it.
        chunks: the bytes; None if the version is the known one.
    """

    version: str
    size: int | None = None
    chunks: Iterator[bytes] | None = None


@contextlib.contextmanager
def asked(uri: str, known: str = "") -> Iterator[Answer]:
    """A store's answer. `known`: a version of the file whose bytes are not needed again.

    Raises:
        VideoError: with reason missing or unreadable; `vidalign.video.fetching.is_node_fault` says whose fault it is.
    """
    scheme = urllib.parse.urlsplit(uri).scheme.lower()
    ask = {"http": _http, "https": _http, **dict.fromkeys(SCHEMES, _arrow)}.get(scheme, _fsspec)
    try:
        with ask(uri, known) as answer:
            yield answer
    except VideoError:
        raise
    except FileNotFoundError as error:
        raise VideoError("missing", f"no file at {uri}") from error
    except urllib.error.HTTPError as error:
        if error.code in GONE:
            raise VideoError("missing", f"no file at {uri}") from error
        raise VideoError("unreadable", f"{uri} cannot be fetched: {error.code} {error.reason}") from error
    except Exception as error:  # every store has its own exceptions; all mean that the bytes cannot be fetched
        raise VideoError("unreadable", f"{uri} cannot be fetched: {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _http(uri: str, known: str) -> Iterator[Answer]:
    request = urllib.request.Request(_quoted(uri), headers={"User-Agent": "vidalign"})
    kind, _, value = known.partition(" ")
    if value:
        request.add_header({"etag": "If-None-Match", "modified": "If-Modified-Since"}[kind], value)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != NOT_MODIFIED:
            raise
        yield Answer(version=known)
        return
    with response:
        headers = response.headers
        tag, modified = headers.get("ETag"), headers.get("Last-Modified")
        version = f"etag {tag}" if tag else f"modified {modified}" if modified else ""
        length = headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else None
        yield Answer(version=version, size=size, chunks=None if version and version == known else _chunks(response))


def _quoted(uri: str) -> str:
    """A uri whose spaces and letters beyond ASCII are written as HTTP wants them; what is written so already stays."""
    return urllib.parse.quote(uri, safe="%/:=&?~#+!$,;'@()*[]")


@contextlib.contextmanager
def _arrow(uri: str, known: str) -> Iterator[Answer]:
    store, key = store_of(uri)
    with os_errors(), store.open_input_file(key) as file:
        said = {name.lower(): value.decode() for name, value in (file.metadata() or {}).items()}
        version = said.get("etag") or f"{file.size()} {said.get('last-modified') or said.get('updated', '')}"
        yield Answer(version=version, size=file.size(), chunks=None if version == known else _chunks(file))


@contextlib.contextmanager
def _fsspec(uri: str, known: str) -> Iterator[Answer]:
    import fsspec

    try:
        store, key = fsspec.url_to_fs(uri)
    except ImportError as error:
        raise VideoError("unreadable", f"{uri} cannot be fetched: {error}") from error
    found = store.info(key)
    version = str(store.ukey(key))
    if version == known:
        yield Answer(version=version)
        return
    with store.open(key, "rb") as file:
        yield Answer(version=version, size=found.get("size"), chunks=_chunks(file))


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
