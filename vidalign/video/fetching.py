"""A local file for a uri, and which errors on the way are a node's or a store's and say nothing about the video."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Iterator
from typing import Any

import av.error

from vidalign.video import naming
from vidalign.video.kept import KeptVideos

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
# Arrow has no exceptions of its own for what S3 answers, only texts.
ARROW_STATUS = re.compile(r"HTTP status (\d+)")
ARROW_PASSING = re.compile(
    r"(?:AWS Error|google::cloud::Status\() ?(?:NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|"
    r"REQUEST_TIMEOUT|REQUEST_EXPIRED|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL)|"
    r"Azure Error: \[(?:ServerBusy|InternalError|OperationTimedOut|\] (?!\d{3} ))"  # without a code and a status: of its network
)
MAX_CAUSES = 10


@contextlib.contextmanager
def local_file(uri: str) -> Iterator[tuple[str, str]]:
    """A local file for a path or uri, and the SHA-256 of its bytes where that is known ("" of a local file).

    Raises:
        VideoError: a remote file cannot be fetched.
    """
    path = naming.local_path(uri)
    if path is not None:
        yield path, ""
        return
    with KeptVideos.of_node().opened(uri) as found:
        yield found


def is_remote(uri: str) -> bool:
    """Whether a uri has to be fetched."""
    return naming.local_path(uri) is None


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
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:  # any other says that there is no such host
        return True
    if any(kind.__name__ in CONNECTION_ERRORS for kind in type(error).__mro__):
        return True
    text = str(error) if isinstance(error, OSError) else ""
    found = ARROW_STATUS.search(text)
    status = int(found[1]) if found else _http_status(error)
    return bool(ARROW_PASSING.search(text)) or status in ASK_AGAIN or 500 <= status < 600


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
