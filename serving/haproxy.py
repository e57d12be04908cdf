"""Runs HAProxy with the configuration that Ray Serve wrote, after closing what it leaves open.

Serve calls this in the place of HAProxy (RAY_SERVE_HAPROXY_BINARY_PATH). Its template makes the admin socket everybody's, publishes
counts on every address, waits an hour for a client, without a replica holds requests until there is one, and does not notice clients
that leave.

This module imports nothing heavy: it runs before each start and reload of HAProxy.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import signal
import sys
from typing import Any

RETRY_AFTER_S = 10
PR_SET_PDEATHSIG = 1  # of Linux, where Serve has HAProxy
SCRIPT = "haproxy"
STATUS = {
    400: ("Bad Request", "invalid_request_error"),
    404: ("Not Found", "not_found_error"),
    405: ("Method Not Allowed", "invalid_request_error"),
    503: ("Service Unavailable", "overloaded_error"),
}
METHODS = "GET HEAD POST PUT DELETE OPTIONS PATCH TRACE"  # of others Serve's server says that they are no HTTP
# With these a client would set Serve's time limit, let its request go on when it has left, or change to another protocol than
# HTTP/1.1, at which Serve's server loses the body.
SERVES_HEADERS = ("x-request-timeout-seconds", "x-request-disconnect-disabled", "upgrade")
PAGES: dict[str, tuple[int, str, str | int]] = {
    "died.http": (503, "the replica ended while it worked on this request; try again later", "engine_died"),
    "down.http": (503, "no replica is there; it is being started, try again later", "engine_restarting"),
    "part.http": (
        400,
        "this is not a whole request: a path that begins with /, headers, and the body that they announce",
        400,
    ),
    "nothing.http": (404, "there is nothing at this path; /openapi.json lists what there is", 404),
    "method.http": (405, f"the method of a request is one of {METHODS}", 405),
}
OWN_PAGES = ((400, "part"), (404, "nothing"), (405, "method"))


def write_script(folder: str, settings: dict[str, Any]) -> str:
    """Write the command that Serve starts, in a folder of its own, and return its path.

    Args:
        settings: the `binary`, `header_s` and `idle_s` for a client, and `max_connections`.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    root = str(pathlib.Path(__file__).parents[1])
    path = pathlib.Path(folder) / SCRIPT
    path.write_text(
        f"#!/bin/sh\nPYTHONPATH={_quoted(root)} exec {_quoted(sys.executable)} -m serving.haproxy {_quoted(json.dumps(settings))} "
        '"$@"\n'
    )
    path.chmod(0o700)
    return str(path)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def closed(config: str, settings: dict[str, Any], folder: str) -> str:
    """Serve's configuration with what it leaves open closed. `folder` holds the `PAGES`.

    Raises:
        ValueError: a line that has to be changed is not there, as after a change of Ray's template.
    """
    defaults = [f"timeout http-request {settings['header_s']:g}s", "option forwardfor"]
    defaults += [f"errorfile {status} {folder}/{page}.http" for status, page in OWN_PAGES]
    rules = ["deny deny_status 400 unless { path_beg / }", "deny deny_status 404 if { path -i /-/routes }"]
    rules += [f"deny deny_status 405 unless {{ method {METHODS} }}"]
    rules += [f"del-header {name}" for name in ("x-request-id", *SERVES_HEADERS)]
    changes = [
        # With it HAProxy notices a client that leaves only after its reply, if the body came after the headers.
        (r"(?m)^    option splice-request\n", ""),
        (r"(stats socket \S+) mode 666 ", r"\1 mode 600 "),
        (r"(frontend prometheus\n\s+bind) \S*:(\d+)", r"\1 127.0.0.1:\2"),
        (r"(listen stats\n\s+bind) \S*:(\d+)", r"\1 127.0.0.1:\2"),
        (r"(defaults\n\s+mode http\n)", r"\1" + "".join(f"    {line}\n" for line in defaults)),
        (r"(?m)^    timeout client .*$", f"    timeout client {settings['idle_s']:g}s"),
        (
            r"(frontend http_frontend\n\s+bind .*\n)",
            r"\1" + "".join(f"    http-request {rule}\n" for rule in rules),
        ),
        (r"(backend default_backend\n    http-request) return status 404 .*", r"\1 deny deny_status 503"),
        (r"(?m)^    maxconn .*$", f"    maxconn {settings['max_connections']}"),
        (r"(?m)^(\s+errorfile 502) .*$", rf"\1 {folder}/died.http"),
        (r"(?m)^(\s+errorfile 50[34]) .*$", rf"\1 {folder}/down.http"),
    ]
    for pattern, text in changes:
        config, number = re.subn(pattern, text, config)
        if not number:
            raise ValueError(
                f"HAProxy's configuration has nothing like {pattern}, so it cannot be closed; is this another Ray?"
            )
    # Serve's proxy would hold a request until there is a replica: nobody listens there.
    return re.sub(r"(?m)^(\s+server \S+) \S+ check backup$", r"\1 127.0.0.1:1 check backup", config)


def error_page(status: int, message: str, code: str | int) -> str:
    """An answer of HAProxy's own."""
    phrase, kind = STATUS[status]
    error = {"message": message, "type": kind, "param": None, "code": code, "request_id": ""}
    body = json.dumps({"error": error})
    head = [f"HTTP/1.1 {status} {phrase}", "Content-Type: application/json"]
    head += [f"Retry-After: {RETRY_AFTER_S}"] if status == 503 else []
    return "\r\n".join([*head, "Cache-Control: no-cache", "Connection: close", f"Content-Length: {len(body)}", "", body])


def end_with_parent() -> None:
    """Let the system end this process, and HAProxy in its place, with the process that started it.

    Serve's manager ends HAProxy when it is shut down; where it is killed, HAProxy would listen on, and hold the endpoint's port.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(arguments: list[str]) -> None:
    """Close the configuration that the arguments name, and become HAProxy."""
    end_with_parent()
    settings, own = json.loads(arguments[0]), arguments[1:]
    if "-f" in own:
        path = pathlib.Path(own[own.index("-f") + 1])
        for name, page in PAGES.items():
            path.with_name(name).write_text(error_page(*page), newline="")
        text = path.read_text()
        if "mode 600 level admin" not in text:  # a reload without a change finds it closed
            path.write_text(closed(text, settings, str(path.parent)))
    os.umask(0o077)
    os.execv(settings["binary"], [settings["binary"], *own])


if __name__ == "__main__":
    main(sys.argv[1:])
