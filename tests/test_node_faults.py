"""What a node or a store does wrong is tried again and never held against a video."""

import errno
import functools
import http.server
import os
import pathlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator

import aiohttp
import av.error
import numpy as np
import pytest
from json_server import Quiet
from test_decoder import PATIENT_S, SPEC, when_blocked_anew, write_noise
from test_video_times import VIDEOS

from vidalign.errors import ClusterError, DataError, VideoError
from vidalign.types import FrameSpec
from vidalign.video import decode_child, decoding
from vidalign.video.decode_child import ChildDecoder, was_killed
from vidalign.video.fetching import is_node_fault
from vidalign.video.frame_cache import load_clip
from vidalign.video.into_cache import decode_into_cache


@pytest.fixture
def child(tmp_path, monkeypatch) -> Iterator[ChildDecoder]:
    monkeypatch.setattr(decode_child, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("VIDALIGN_VIDEOS", str(tmp_path / "kept"))
    decoder = ChildDecoder(SPEC, str(tmp_path / "frames"), deadline_s=PATIENT_S)
    yield decoder
    decoder.close()


def test_which_ends_of_a_process_are_somebody_elses_doing():
    killed = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    crashed = [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL]
    assert all(was_killed(-number) for number in killed)
    assert not any(was_killed(status) for status in [0, 1, 137, *(-number for number in crashed)])


def test_no_good_video_is_lost_to_25_kills(child, tmp_path):
    """SIGKILL at random moments, as the system sends it when memory runs out: while a child starts, decodes or writes."""
    wanted = 25
    good = [str(write_noise(tmp_path / f"{seed}.mp4", seed=seed)) for seed in range(40)]
    rng, num_kills, stop = random.Random(0), 0, threading.Event()

    def kill() -> None:
        nonlocal num_kills
        while num_kills < wanted and not stop.is_set():
            time.sleep(rng.uniform(0, 0.6))
            if (pid := child.pid) is not None:
                try:
                    os.kill(pid, signal.SIGKILL)
                    num_kills += 1
                except ProcessLookupError:
                    pass

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        rows = [child.decode(uri) for uri in good]
        while num_kills < wanted:
            for uri in good:
                shutil.rmtree(tmp_path / "frames")
                assert child.decode(uri).reason == ""
    finally:
        stop.set()
        thread.join()
    assert num_kills == wanted
    assert [row.reason for row in rows] == [""] * len(good)
    last = child.decode(good[-1])
    np.testing.assert_array_equal(load_clip(last.frames_path).frames, decoding.decode(good[-1], SPEC).frames)


def test_a_child_that_is_always_killed_ends_the_run(child, tmp_path, monkeypatch):
    monkeypatch.setattr(decode_child, "MAX_TRIES", 3)
    os.mkfifo(tmp_path / "a.mp4")
    thread = when_blocked_anew(child, tmp_path / "a.mp4", signal.SIGKILL, times=3)
    with pytest.raises(
        ClusterError, match=r"killed 3 times at .*a\.mp4 \(signal SIGKILL\), most likely because its node ran out"
    ):
        child.decode(str(tmp_path / "a.mp4"))
    thread.join()
    assert child.decode(str(VIDEOS / "base.mp4")).reason == ""


def test_one_crash_is_no_verdict(child, tmp_path):
    """The second child finds the file, and decodes it."""
    path = tmp_path / "a.mp4"
    os.mkfifo(path)
    good = write_noise(tmp_path / "good.mp4")

    def crash_then_replace() -> None:
        with path.open("wb"):
            good.rename(path)
            os.kill(child.pid, signal.SIGSEGV)

    thread = threading.Thread(target=crash_then_replace)
    thread.start()
    assert child.decode(str(path)).reason == ""
    thread.join()


# Stores


class Store(http.server.BaseHTTPRequestHandler):
    """Answers with each of `answers` in turn and with the last one for ever: a status, or "cut" for a body that ends too early."""

    answers: list[int | str]

    def do_GET(self) -> None:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        body = (VIDEOS / "base.mp4").read_bytes()
        self.send_response(200 if answer == "cut" else int(answer))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if answer == "cut" else body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def store() -> Iterator[functools.partial]:
    servers = []

    def start(*answers: int | str) -> str:
        handler = type("Answering", (Store,), {"answers": list(answers)})
        server = Quiet(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/base.mp4"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("answers", [(503, 503, 200), (500, 200), (429, 200), ("cut", 200)], ids=str)
def test_a_store_that_fails_for_a_moment_loses_nothing(child, store, answers):
    row = child.decode(store(*answers))
    assert row.reason == ""
    np.testing.assert_array_equal(load_clip(row.frames_path).frames, decoding.decode(VIDEOS / "base.mp4", SPEC).frames)


def test_a_store_that_fails_for_good_ends_the_run(child, store, monkeypatch):
    monkeypatch.setattr(decode_child, "MAX_TRIES", 3)
    with pytest.raises(DataError, match=r"503.*\(3 attempts\)\. That is no fault of the video"):
        child.decode(store(503))
    with pytest.raises(DataError, match="no fault of the video"):
        child.decode("http://127.0.0.1:9/nobody-listens.mp4")


@pytest.mark.parametrize(("answer", "reason"), [(404, "missing"), (403, "unreadable")])
def test_what_a_store_says_of_a_video_is_believed(child, store, answer, reason):
    assert child.decode(store(answer)).reason == reason


# Errors by themselves


class BotoError(Exception):
    """As botocore's ClientError keeps the answer of S3."""

    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def caused(error: Exception) -> VideoError:
    try:
        raise VideoError("unreadable", "x") from error
    except VideoError as made:
        return made


def test_which_errors_are_the_nodes():
    passing = [
        MemoryError(),
        av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory"),
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.EIO, "a disk"),
        OSError(errno.ESTALE, "a network file system"),
        OSError(errno.EMFILE, "too many files"),
        aiohttp.ServerDisconnectedError(),
        BotoError(503),
        OSError(errno.EBUSY, "SlowDown"),
    ]
    verdicts = [
        PermissionError(errno.EACCES, "no"),
        OSError(errno.ELOOP, "a link to itself"),
        ValueError("Protocol not known"),
        BotoError(403),
        av.error.InvalidDataError(1, "Invalid data"),
        av.error.OSError(errno.EIO, "FFmpeg says it of damaged files"),
    ]
    assert [error for error in passing if not is_node_fault(caused(error))] == []
    assert [error for error in verdicts if is_node_fault(caused(error))] == []


def test_memory_that_runs_out_while_decoding_is_not_a_truncated_video(tmp_path, monkeypatch):
    def without_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decoding, "decode", without_memory)
    reply = decode_into_cache(str(VIDEOS / "base.mp4"), FrameSpec(), str(tmp_path))
    assert reply["reason"] == "again"
    assert pathlib.Path(VIDEOS / "base.mp4").name in reply["message"]
