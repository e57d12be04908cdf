"""One way from what a client sends to frames: child processes that can be killed, each decoding under a deadline, and a frame cache.

    name of local files ── a child (vidalign.video.decode_child) ── the endpoint's frame cache ── Clip

A client that leaves takes its child with it. No client has all children, so a video that takes as long as it may delays nobody else.
The cache is the endpoint's own, because clients fill it: what was not used for the longest time is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from serving.admission import Admission
from vidalign.config.serving import MediaConfig
from vidalign.errors import DataError, VideoError
from vidalign.types import DEADLINE_S, DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video.decode_child import ChildDecoder, DecodedVideo
from vidalign.video.frame_cache import FrameCache, load_clip

if TYPE_CHECKING:
    from vidalign.video.clip import Clip

VARIABLE = "VIDALIGN_SERVED_MEDIA"
MOST_WAITING, MOST_WAIT_S = 4096, 600.0  # the gate bounds how many requests there are
CHECK_CACHE_EVERY = 64  # files written
SMALL_BYTES = 1 << 20  # are hashed sooner than another thread is woken
client: contextvars.ContextVar[str] = contextvars.ContextVar("client", default="")  # who asks


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaOptions:
    """How a replica reads media; its environment carries them to vLLM's plugin."""

    media: MediaConfig = dataclasses.field(default_factory=lambda: MediaConfig.model_validate({}))
    deadline_s: float = DEADLINE_S
    num_decoders: int | None = None

    def environment(self) -> dict[str, str]:
        """The environment variable of a replica."""
        row = {"media": self.media.model_dump(mode="json"), "deadline_s": self.deadline_s, "num_decoders": self.num_decoders}
        return {VARIABLE: json.dumps(row)}

    @classmethod
    def of_process(cls) -> MediaOptions:
        """Those of this process's environment; the defaults outside of a replica."""
        row = json.loads(os.environ.get(VARIABLE) or "{}")
        return cls(**{**row, "media": MediaConfig.model_validate(row.get("media", {}))})

    @property
    def cache_dir(self) -> pathlib.Path:
        """The folder of the endpoint's frame cache on this node."""
        return pathlib.Path(self.media.cache_dir or f"{tempfile.gettempdir()}/vidalign-served-frames-{os.getuid()}")


class Decoders:
    """The children of one process, and what they have decoded."""

    def __init__(self, options: MediaOptions) -> None:
        most = options.num_decoders or max(2, min(8, os.cpu_count() or 1))
        self._places = Admission(most, MOST_WAITING, MOST_WAIT_S, most_each=max(1, most - 1))
        self._options, self._root = options, options.cache_dir
        self._idle: dict[Backend, list[ChildDecoder]] = {}
        self._cache, self._num_written = FrameCache(self._root), 0
        self._make_root()

    def _make_root(self) -> None:
        """What cleans up temporary folders may have removed it."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def clip_of(self, name: str, spec: FrameSpec, backend: Backend = DEFAULT_BACKEND) -> tuple[Clip, str]:
        """The clip of a name of local files, and what it is known by.

        Raises:
            VideoError: it cannot be used.
            DataError, ClusterError: it cannot be decoded here now, for no fault of its own.
        """
        async with self._places.place(client.get(), 1):
            decoder = self._decoder(backend)
            self._make_root()
            try:
                work = asyncio.ensure_future(asyncio.to_thread(_decoded, decoder, name, spec))
                done, clip = await asyncio.shield(work)
            except asyncio.CancelledError:
                decoder.stop()
                work.add_done_callback(functools.partial(_close, decoder))
                raise
            except BaseException:
                decoder.close()
                raise
            self._idle[backend].append(decoder)
        if clip is None:
            raise VideoError(done.reason, done.message)
        self._num_written += 1
        if self._num_written % CHECK_CACHE_EVERY == 1:
            await asyncio.to_thread(give_up, self._root, int(self._options.media.cache_gib * 2**30))
        return clip, os.path.basename(done.frames_path)

    async def clip_of_bytes(
        self,
        data: bytes,
        named: Callable[[Sequence[pathlib.Path]], str],
        spec: FrameSpec,
        backend: Backend = DEFAULT_BACKEND,
    ) -> tuple[Clip, str]:
        """The clip of a whole video that is in memory; see `clip_of`."""
        digest = _hash(data) if len(data) <= SMALL_BYTES else await asyncio.to_thread(_hash, data)
        path = self._cache.path(digest, spec)
        if path.is_file():
            with contextlib.suppress(DataError):
                return await asyncio.to_thread(_loaded, path), path.name
        async with self.files([data]) as paths:
            return await self.clip_of(named(paths), spec, backend)

    @contextlib.asynccontextmanager
    async def files(self, contents: Sequence[bytes]) -> AsyncIterator[list[pathlib.Path]]:
        """Files with these contents, while the block lasts."""
        self._make_root()
        folder = pathlib.Path(tempfile.mkdtemp(prefix="incoming-", dir=self._root))
        paths = [folder / f"{number:06d}" for number in range(len(contents))]
        try:
            await asyncio.to_thread(lambda: [path.write_bytes(data) for path, data in zip(paths, contents, strict=True)])
            yield paths
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _decoder(self, backend: Backend) -> ChildDecoder:
        idle = self._idle.setdefault(backend, [])
        if idle:
            return idle.pop()
        return ChildDecoder(FrameSpec(), str(self._root), backend=backend, deadline_s=self._options.deadline_s)


def _decoded(decoder: ChildDecoder, name: str, spec: FrameSpec) -> tuple[DecodedVideo, Clip | None]:
    done = decoder.decode(name, spec)
    return done, None if done.reason else _loaded(done.frames_path)


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _close(decoder: ChildDecoder, work: asyncio.Future[tuple[DecodedVideo, Clip | None]]) -> None:
    work.exception()  # seen: it says that the decoding was stopped
    decoder.close()


def _loaded(path: str | os.PathLike[str]) -> Clip:
    clip = load_clip(path)
    with contextlib.suppress(OSError):
        os.utime(path)
    return clip


def give_up(root: pathlib.Path, max_bytes: int) -> None:
    """Remove what was not used for the longest time until the rest fits."""
    found = []
    for path in root.glob("*/*.safetensors"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        path.unlink(missing_ok=True)
        total -= size


@functools.cache
def decoders() -> Decoders:
    """Those of this process."""
    return Decoders(MediaOptions.of_process())
