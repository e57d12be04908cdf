"""A local file for a uri, and which errors on the way are a node's or a store's and say nothing about the video."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import urllib.parse
from collections.abc import Iterator
from typing import Any

import av.error

from vidalign.errors import VideoError

ASK_AGAIN = {408, 425, 429}  # HTTP: timeout, too early, too many requests; and everything from 500 on
# Of memory, handles, room, and of network file systems and connections.
PASSING = {
    getattr(errno, name)
    for name in (
        *("ENOMEM", "EMFILE", "ENFILE", "EAGAIN", "EBUSY", "EINTR", "ENOSPC", "EDQUOT", "ESTALE", "EPIPE", "ETIMEDOUT"),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN"),
    )
}
# The bases of the connection errors of aiohttp, requests and urllib3, botocore, and the Azure clients, which are not imported.
CONNECTION_ERRORS = {
    *("ClientConnectionError", "ClientPayloadError", "HTTPClientError", "ProtocolError", "MaxRetryError"),
    *("ServiceRequestError", "ServiceResponseError"),
}
MAX_CAUSES = 10


@contextlib.contextmanager
def local_path(uri: str) -> Iterator[str]:
    """A local file for a path, a file: uri, or any uri that fsspec can read; of the last, a copy that is removed afterwards."""
    scheme = urllib.parse.urlsplit(uri).scheme if "://" in uri else ""
    if not scheme:
        yield uri
        return
    if scheme == "file":
        yield urllib.parse.unquote(urllib.parse.urlsplit(uri).path)
        return
    import fsspec

    with tempfile.TemporaryDirectory(prefix="vidalign-") as folder:
        copy = os.path.join(folder, "video")
        try:
            filesystem, remote = fsspec.url_to_fs(uri)
            filesystem.get_file(remote, copy)
        except FileNotFoundError as error:
            raise VideoError("missing", f"no file at {uri}") from error
        except Exception as error:  # every protocol has its own exceptions; all mean that the bytes cannot be fetched
            raise VideoError("unreadable", f"{uri} cannot be fetched: {type(error).__name__}: {error}") from error
        yield copy


def is_node_fault(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, comes from a node's memory, handles or disk, or from a store or network that
    does not answer. The same video may well decode a moment later."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None:
            return False
        if _is_passing(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, MemoryError | ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno in PASSING:
        return True
    # A disk or store that fails is EIO for the system; FFmpeg says it of damaged files as well.
    if isinstance(error, OSError) and error.errno == errno.EIO and not isinstance(error, av.error.FFmpegError):
        return True
    if any(kind.__name__ in CONNECTION_ERRORS for kind in type(error).__mro__):
        return True
    status = _http_status(error)
    return status in ASK_AGAIN or 500 <= status < 600


def _http_status(error: BaseException) -> int:
    """The HTTP status that a store's client keeps in its exception, or 0."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        names = ("status", "status_code", "code")
        found = next((value for name in names if (value := getattr(error, name, None)) is not None), None)
        found = getattr(response, "status_code", None) if found is None else found
    return int(found) if isinstance(found, int | str) and str(found).isdigit() else 0
