"""`vidalign watch RUN`: a page of this machine alone that shows a run while it goes on. It reads, and nothing can be changed there."""

from __future__ import annotations

import argparse
import html
import http.server
import json
import pathlib
import secrets
import sys
import threading
from typing import Any

from pipelines.watched import Watched
from vidalign import mirror
from vidalign.errors import ClusterError, ConfigError
from vidalign.files import RunFolder

HOST = "127.0.0.1"
TEMPLATE = pathlib.Path(__file__).parent / "templates" / "watch.html"


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "show a run while it goes on, on a page of this machine alone"
    command = commands.add_parser("watch", help=text, description=f"{text}: stages, curves, newest pairs, quarantine.")
    command.add_argument("run_folder", metavar="RUN", help="a run's folder, or its YAML file")
    command.add_argument("--port", type=int, default=0, metavar="N", help="where the page is (default: any free port)")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    with serve(folder_of(arguments.run_folder), arguments.port) as server:
        print(f"http://{HOST}:{server.server_port}/", flush=True)
        print(
            f"Ctrl-C ends it, and not the run. From another machine: ssh -L {server.server_port}:{HOST}:{server.server_port} HOST",
            file=sys.stderr,
        )
        server.serve_forever()
    return 0


def folder_of(name: str) -> RunFolder:
    """The run of a folder or of a configuration. Raises `ConfigError` where there is none; it may be empty as yet."""
    name = mirror.opened(name)
    place = pathlib.Path(name)
    if place.is_file():
        from vidalign.config.loading import load_config

        return RunFolder.at(load_config(place).run_dir)
    if not place.is_dir():
        raise ConfigError(f"there is no run folder {name}; give the folder of a run that has begun, or its YAML file")
    return RunFolder.at(name)


class Server(http.server.ThreadingHTTPServer):
    """The page of one run; `state()` is what it shows now."""

    daemon_threads = True

    def __init__(self, run: RunFolder, port: int) -> None:
        self._watched, self._lock = Watched(run), threading.Lock()
        self.nonce = secrets.token_urlsafe(16)
        self.page = TEMPLATE.read_text(encoding="utf-8").replace("NONCE", self.nonce).replace("NAME", html.escape(run.name))
        super().__init__((HOST, port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves while it is answered is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def state(self) -> bytes:
        with self._lock:
            return json.dumps(self._watched.state(), ensure_ascii=False).encode("utf-8", "replace")


def serve(run: RunFolder, port: int) -> Server:
    """The server of a run's page, on this machine's own address. Raises `ClusterError` for a port that is taken."""
    try:
        return Server(run, port)
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"cannot listen on port {port} of {HOST} ({error}); choose another with --port, or leave it out"
        ) from error


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD of two paths, to a browser that asks for this machine by its own name."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        # Another site's name may lead to this address: its pages must not read a run.
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        path = self.path.partition("?")[0]
        if host not in (HOST, "localhost"):
            status, kind, body = 403, "text/plain", f"ask for http://{HOST}:{self.server.server_port}/\n".encode()
        elif path == "/":
            status, kind, body = 200, "text/html", self.server.page.encode()
        elif path == "/state.json":
            status, kind, body = 200, "application/json", self.server.state()
        else:
            status, kind, body = 404, "text/plain", b"there is / and /state.json\n"
        self.send_response(status)
        policy = f"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; script-src 'nonce-{self.server.nonce}'"
        headers = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to whoever watches."""
