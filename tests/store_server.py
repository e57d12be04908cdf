"""An object store for tests: moto's server, with a 503 on every tenth request."""

import contextlib
import http.client
import http.server
import itertools
import logging
import threading
import time

import pytest
from json_server import Quiet


class Unreliable(http.server.BaseHTTPRequestHandler):
    """Passes requests on to moto, but answers every tenth with 503."""

    protocol_version = "HTTP/1.1"
    behind: tuple[str, int]
    numbers: itertools.count
    refused: list[str]
    asked: list[str]
    slow: dict[str, float]
    refuses: bool

    def answer(self) -> None:
        body = self.body()
        self.asked.append(f"{self.command} {self.path}")
        time.sleep(self.slow.get(self.command, 0))
        if self.refuses and next(self.numbers) % 10 == 9:
            self.refused.append(self.path)
            self.reply(503, {}, b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>")
            return
        behind = http.client.HTTPConnection(*self.behind)
        headers = {
            name: value for name, value in self.headers.items() if name.lower() not in ("transfer-encoding", "expect")
        }
        behind.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        got = behind.getresponse()
        self.reply(got.status, dict(got.getheaders()), got.read())
        behind.close()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return found

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                self.send_header(name, value)
        length = next((value for name, value in headers.items() if name.lower() == "content-length"), str(len(body)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def store_server(*, refuses: bool = True):
    """Yields (the server in front, its handler class).

    The class has what was `refused` and `asked` so far, the seconds that a method is `slow`, and whether it `refuses` any.
    """
    moto_server = pytest.importorskip("moto.server", reason="moto is in requirements/dev.lock")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    given = {
        "behind": moto.get_host_and_port(),
        "numbers": itertools.count(),
        "refused": [],
        "asked": [],
        "slow": {},
        "refuses": refuses,
    }
    handler = type("Between", (Unreliable,), given)
    between = Quiet(("127.0.0.1", 0), handler)
    threading.Thread(target=between.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield between, handler
    finally:
        between.shutdown()
        between.server_close()
        moto.stop()


def environment(server) -> dict[str, str]:
    """The variables with which clients reach a `store_server`."""
    return {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server[0].server_port}",
    }


def behind(server):
    """A client of the store itself, whose requests are not refused, and in which there is a bucket "bkt"."""
    from pyarrow import fs

    store = fs.S3FileSystem(
        access_key="a",
        secret_key="b",
        endpoint_override="http://{}:{}".format(*server[1].behind),
        allow_bucket_creation=True,
    )
    store.create_dir("bkt")
    return store
