"""The process that decodes, separate so that it can be killed: decoders hang and crash on hostile files.

    parent: ChildDecoder.decode(uri) ── one JSON line ──> child: main()     {"uri", "alarm_s"} and perhaps "spec"
                                     <── "opened" ──                        of a remote uri: it is fetched, and now decoded
                                     <── "at the store" ── "opened" ──      where the frame cache is in a store: asked, or written
                                     <── one JSON line ──                   {"frames_path", "reason", "message", "backend"}

Only uris and paths cross; frames go straight into the frame cache. The child imports the decoders and nothing of Ray or
torch. It is started once and reused, and replaced after a kill or a crash.

A video is blamed for what it does twice: crash a fresh child. That a child is killed from outside (by the system when memory runs
out), or that a store does not answer, is the node's fault: it is tried again after a pause, and in the end the run stops. Such a
video is never quarantined.
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
from typing import IO

from vidalign import stored
from vidalign.errors import ClusterError, DataError, VidalignError
from vidalign.records import Record
from vidalign.types import DEADLINE_S, DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import visuals
from vidalign.video.deadlines import ALARM_AFTER_DEADLINE_S, AT_STORE, FETCH_S, OPENED, Deadlines
from vidalign.video.into_cache import decode_into_cache

START_TIMEOUT_S = 120.0
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}  # what a decoder does to itself
MAX_CRASHES = 2  # of one video
MAX_TRIES = 10  # of one video, with pauses that grow to MAX_PAUSE_S: 21 seconds in all
MAX_STARTS = 30  # of children for one video, those included that were killed before they were ready
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0
VIDEOS_PER_CHILD = 500  # decoders leak a little with every reader: a fresh child now and then bounds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodedVideo(Record):
    """Where the frames of one video are, or why there are none.

    `frames_path` is "" if the video is quarantined; `reason` is then one of `vidalign.errors.QUARANTINE_REASONS`. `backend` is what
    decoded it, which may be another than the one that was asked for.
    """

    video: str
    frames_path: str = ""
    reason: str = ""
    message: str = ""
    backend: str = ""


class _KilledError(Exception):
    """Someone else ended the child."""

    def __init__(self, how: str, *, while_decoding: bool) -> None:
        super().__init__(how)
        self.while_decoding = while_decoding


class ChildDecoder:
    """Decodes videos one after another in a child process, each under a deadline. It survives whatever a file does.

    `deadline_s` may be changed between two videos.
    """

    def __init__(
        self, spec: FrameSpec, cache_dir: str, *, backend: Backend = DEFAULT_BACKEND, deadline_s: float = DEADLINE_S
    ) -> None:
        self._settings = {"spec": spec.to_row(), "cache_dir": cache_dir, "backend": backend}
        self.deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._buffer = b""
        self._num_decoded = 0
        self._stopped = False

    @property
    def pid(self) -> int | None:
        """Process id of the child; None if there is no child."""
        return None if self._process is None else self._process.pid

    def decode(self, uri: str, spec: FrameSpec | None = None) -> DecodedVideo:
        """Decode one video into the frame cache. A fault of the video is returned as its quarantine reason, not raised.

        `spec`: in place of the decoder's own.

        Raises:
            DataError: the frame cache cannot be written, the child cannot be started, or a store does not answer.
            ClusterError: the child is killed again and again, or `stop` was called.
        """
        num_crashes = num_tries = 0
        for num_starts in range(1, MAX_STARTS + 1):
            try:
                done = self._try(uri, spec)
            except _KilledError as killed:
                if self._stopped:
                    raise ClusterError(f"the decoding of {uri} was stopped") from None
                num_tries += killed.while_decoding
                if num_tries >= MAX_TRIES or num_starts >= MAX_STARTS:
                    raise ClusterError(
                        f"the decoding process was killed {num_starts} times at {uri} ({killed}), most likely because its node ran "
                        "out of memory. Give the node more memory, lower video.num_decoders or video.max_pixels_decoded, or leave the "
                        "video out, and start the run again: it continues"
                    ) from None
            else:
                num_tries += 1
                num_crashes += done.reason == "crashed"
                if done.reason != "again" and (done.reason != "crashed" or num_crashes >= MAX_CRASHES):
                    return done
                if num_tries >= MAX_TRIES and done.reason == "again":
                    raise DataError(
                        f"{done.message} ({num_tries} attempts). That is no fault of the video: look at the store, the network and "
                        "the node's memory and disk, and start the run again: it continues"
                    )
                if done.reason == "crashed":
                    continue
            time.sleep(min(FIRST_PAUSE_S * 2 ** max(0, num_tries - 1), MAX_PAUSE_S))
        raise ClusterError(
            f"the decoding process was killed or failed {MAX_STARTS} times at {uri}; look at the node that decodes it"
        )

    def _try(self, uri: str, spec: FrameSpec | None) -> DecodedVideo:
        """One attempt. The reason is "again" where a store or the node failed. Raises `_KilledError`."""
        process = self._running_child()
        assert self._stderr is not None
        self._stderr.truncate(0)
        request = {"uri": uri, "alarm_s": self.deadline_s + ALARM_AFTER_DEADLINE_S}
        if spec is not None:
            request["spec"] = spec.to_row()
        waits = visuals.has_remote(uri)
        limit_s = FETCH_S if waits else self.deadline_s
        line = self._exchange(process, json.dumps(request).encode() + b"\n", time.monotonic() + limit_s)
        while line in (OPENED, AT_STORE):
            waits = line == AT_STORE
            line = self._read_line(process, time.monotonic() + (FETCH_S if waits else self.deadline_s))
        if waits and line is None:
            self.close()
            return DecodedVideo(video=uri, reason="again", message=f"{uri} was not fetched within {FETCH_S:g} s")
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
            if was_killed(status):
                raise _KilledError(_describe_status(status), while_decoding=True)
            message = f"the decoding process died on {uri} ({_describe_status(status)}){said}"
            return DecodedVideo(video=uri, reason="crashed", message=message)
        reply = json.loads(line)
        if reply["reason"] == "cache":
            raise DataError(reply["message"])
        return DecodedVideo(video=uri, **reply)

    def stop(self) -> None:
        """End, from another thread, the `decode` that is running: it raises. The decoder cannot be used again."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()

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
            line = self._read_line(self._process, time.monotonic() + START_TIMEOUT_S)
            if line != b"ready\n":
                status, said = self._process.wait() if line == b"" else 0, self._last_words()
                self.close()
                if was_killed(status):
                    raise _KilledError(_describe_status(status), while_decoding=False)
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


def was_killed(status: int) -> bool:
    """Whether a process with this exit status was ended from outside, as by the system when memory runs out."""
    return status < 0 and -status not in CRASHES


def _describe_status(status: int) -> str:
    if status < 0:
        return f"signal {signal.Signals(-status).name}"
    return f"exit code {status}"


def main() -> None:
    """The child's loop: read a request, decode, reply."""
    settings = json.loads(sys.argv[1])
    spec = FrameSpec.from_row(settings["spec"])
    # Libraries may print, so replies get their own handle and standard output goes to standard error.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # Imported before "ready", so that the deadline covers only decoding.
    from vidalign.video import frame_cache, relevance  # noqa: F401

    if spec.choice is not None and spec.choice.needs_question:
        with contextlib.suppress(VidalignError):  # said with the first video
            relevance.opened(spec.choice.relevance)

    if settings["backend"] == "decord":
        import decord  # noqa: F401

    if mirrored := stored.of(settings["cache_dir"]) is not None:
        import pyarrow.fs  # noqa: F401

    replies.write(b"ready\n")
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        uri = request["uri"]
        deadlines = Deadlines(replies, request["alarm_s"], fetches=visuals.has_remote(uri))
        asked = FrameSpec.from_row(request["spec"]) if "spec" in request else spec
        at_store = deadlines.at_store if mirrored else contextlib.nullcontext
        reply = decode_into_cache(uri, asked, settings["cache_dir"], settings["backend"], deadlines.opened, at_store)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
