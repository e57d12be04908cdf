"""The process that decodes, separate so that it can be killed: decoders hang and crash on hostile files.

    parent: ChildDecoder.decode(uri) ── one JSON line ──> child: main()     {"uri", "alarm_s"}
                                     <── one JSON line ──                   {"frames_path", "reason", "message"}

Only uris and paths are exchanged; frames go straight into the frame cache. The child imports the decoders but neither Ray nor
torch. It is started once and reused, and replaced after it was killed or crashed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from typing import IO

from vidalign.errors import DataError, VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec, Record
from vidalign.video import decoding

START_TIMEOUT_S = 120.0
ALARM_AFTER_DEADLINE_S = 10.0
VIDEOS_PER_CHILD = 500  # decoders leak a little memory with every reader; a fresh child now and then bounds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedVideo(Record):
    """Where the frames of one video are, or why there are none.

    `frames_path` is "" if the video is quarantined; `reason` is then one of `vidalign.types.QUARANTINE_REASONS`.
    """

    video: str
    frames_path: str = ""
    reason: str = ""
    message: str = ""


class ChildDecoder:
    """Decodes videos one after another in a child process, each under a deadline. It survives whatever a file does.

    `deadline_s` may be changed between two videos.
    """

    def __init__(
        self, spec: FrameSpec, cache_dir: str, *, backend: Backend = DEFAULT_BACKEND, deadline_s: float = 60.0
    ) -> None:
        self._settings = {"spec": spec.to_row(), "cache_dir": cache_dir, "backend": backend}
        self.deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._buffer = b""
        self._num_decoded = 0

    @property
    def pid(self) -> int | None:
        """Process id of the child; None if there is no child."""
        return None if self._process is None else self._process.pid

    def decode(self, uri: str) -> DecodedVideo:
        """Decode one video into the frame cache. A fault of the video is returned as its quarantine reason, not raised.

        Raises:
            DataError: the frame cache cannot be written, or the child cannot be started.
        """
        process = self._running_child()
        assert self._stderr is not None
        self._stderr.truncate(0)
        request = {"uri": uri, "alarm_s": self.deadline_s + ALARM_AFTER_DEADLINE_S}
        line = self._exchange(process, json.dumps(request).encode() + b"\n", time.monotonic() + self.deadline_s)
        self._num_decoded += 1
        if line is None:
            self.close()
            message = (
                f"{uri} was not decoded within video.deadline_s={self.deadline_s:g} s; raise the deadline for long videos"
            )
            return DecodedVideo(video=uri, reason="timeout", message=message)
        if not line:
            status, said = process.wait(), self._last_words()
            self.close()
            if status == -signal.SIGALRM:  # the child's own alarm, see main(): this process was suspended in the meantime
                message = f"{uri} was not decoded within video.deadline_s={self.deadline_s:g} s"
                return DecodedVideo(video=uri, reason="timeout", message=message)
            message = f"the decoding process died on {uri} ({_describe_status(status)}){said}"
            return DecodedVideo(video=uri, reason="crashed", message=message)
        reply = json.loads(line)
        if reply["reason"] == "cache":
            raise DataError(reply["message"])
        return DecodedVideo(video=uri, **reply)

    def close(self) -> None:
        """Kill the child, if any. The next `decode` starts a new one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout, self._stderr):
                if stream is not None:
                    stream.close()
        self._process, self._stderr, self._buffer, self._num_decoded = None, None, b"", 0

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._process is not None and (self._process.poll() is not None or self._num_decoded >= VIDEOS_PER_CHILD):
            self.close()
        if self._process is None:
            # Append mode, so that truncating the file between two videos does not leave a hole.
            self._stderr = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 (closed in close())
            command = [sys.executable, "-m", "vidalign.video.decode_child", json.dumps(self._settings)]
            paths = [str(pathlib.Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"},
            )
            if self._read_line(self._process, time.monotonic() + START_TIMEOUT_S) != b"ready\n":
                said = self._last_words()
                self.close()
                raise DataError(f"the decoding process did not start within {START_TIMEOUT_S:g} s{said}")
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes | None:
        assert process.stdin is not None
        try:
            process.stdin.write(request)
        except BrokenPipeError:
            return b""
        return self._read_line(process, deadline)

    def _read_line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
        """One line; b"" if the child died; None if the deadline passed."""
        assert process.stdout is not None
        handle = process.stdout.fileno()
        while b"\n" not in self._buffer:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([handle], [], [], remaining)[0]:
                return None
            received = os.read(handle, 65536)
            if not received:
                return b""
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def _last_words(self) -> str:
        assert self._stderr is not None
        self._stderr.seek(0)
        text = self._stderr.read()[-2000:].decode(errors="replace").strip()
        return f"; it last wrote: {text.splitlines()[-1]}" if text else ""


def _describe_status(status: int) -> str:
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit code {status}"


def decode_into_cache(uri: str, spec: FrameSpec, cache_dir: str, backend: Backend = DEFAULT_BACKEND) -> dict[str, str]:
    """The child's work for one uri, as the fields of its reply. Frames that are already in the cache are not decoded again."""
    from vidalign.video.frame_cache import FrameCache
    from vidalign.video.hash_index import HashIndex

    cache, index = FrameCache(cache_dir), HashIndex(pathlib.Path(cache_dir) / "hashes")
    try:
        with _local_path(uri) as path:
            digest = decoding.content_hash(path, index)
            if cache.holds(digest, spec):
                return _reply(frames_path=str(cache.path(digest, spec)))
            clip = decoding.decode(path, spec, backend)
    except VideoError as error:
        return _reply(reason=error.reason, message=error.message)
    try:
        return _reply(frames_path=str(cache.put(digest, spec, clip)))
    except OSError as error:
        message = (
            f"decoded frames cannot be written to {cache_dir}: {error.strerror}; free some space or set video.cache_dir"
        )
        return _reply(reason="cache", message=message)


def _reply(frames_path: str = "", reason: str = "", message: str = "") -> dict[str, str]:
    return {"frames_path": frames_path, "reason": reason, "message": message}


@contextlib.contextmanager
def _local_path(uri: str) -> Iterator[str]:
    """A local file for a path, a file: uri or any uri that fsspec can read; the latter as a copy that is removed afterwards."""
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
        except Exception as error:  # every protocol has its own exceptions, but all mean that the bytes cannot be fetched
            raise VideoError("unreadable", f"{uri} cannot be fetched: {type(error).__name__}: {error}") from error
        yield copy


def main() -> None:
    """The child's loop: read a request, decode, reply."""
    settings = json.loads(sys.argv[1])
    spec = FrameSpec.from_row(settings["spec"])
    # Libraries may print, so replies get their own handle and standard output goes to standard error.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # Imported before "ready", so that the deadline covers only decoding.
    from vidalign.video import frame_cache  # noqa: F401

    if settings["backend"] == "decord":
        import decord  # noqa: F401

    replies.write(b"ready\n")
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        # The parent kills the child at the deadline. If the parent has died, the alarm keeps a hanging child from outliving it:
        # its default action ends the process, even inside a decoder's C code.
        signal.setitimer(signal.ITIMER_REAL, request["alarm_s"])
        reply = decode_into_cache(request["uri"], spec, settings["cache_dir"], settings["backend"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
