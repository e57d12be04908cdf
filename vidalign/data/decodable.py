"""Opens every video of a data set, several at a time in processes that can be killed: which cannot be used, and which look alike."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import queue
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vidalign.types import DEADLINE_S, DEFAULT_BACKEND, FrameSpec
from vidalign.video.decode_child import ChildDecoder
from vidalign.video.frame_cache import load_signature
from vidalign.video.signature import NUM_FRAMES, Signatures

BLOCK = 4096  # videos compared at a time
# As many frames as a signature compares, and small: they are only looked at, and thrown away.
SPEC = FrameSpec(num_frames=NUM_FRAMES, max_pixels=128 * 128, min_frames=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """What became of one video: its signature, or the quarantine reason and a sentence."""

    reason: str = ""
    message: str = ""
    signature: np.ndarray | None = None


def look(
    videos: Sequence[str],
    *,
    num_decoders: int | None = None,
    deadline_s: float = DEADLINE_S,
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, Looked]:
    """Decode a few frames of every video, named as `vidalign.video.naming` says.

    Args:
        num_decoders: processes at a time; None: one for each CPU.
        deadline_s: how long one video may take before its process is killed.
        on_done: called after each video.

    Raises:
        DataError: a store or the disk does not answer, which is no fault of a video.
        ClusterError: decoding processes are killed again and again.
    """
    workers = max(1, min(num_decoders or len(os.sched_getaffinity(0)), len(videos)))
    with _decoders(workers, deadline_s) as decoders, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        idle: queue.SimpleQueue[ChildDecoder] = queue.SimpleQueue()
        for decoder in decoders:
            idle.put(decoder)

        def one(video: str) -> Looked:
            decoder = idle.get()
            try:
                done = decoder.decode(video)
            finally:
                idle.put(decoder)
            if not done.frames_path:
                return Looked(done.reason, done.message)
            found = load_signature(done.frames_path)
            pathlib.Path(done.frames_path).unlink(missing_ok=True)
            return Looked(signature=found)

        futures = {pool.submit(one, video): video for video in videos}
        looked = {}
        try:
            for future in concurrent.futures.as_completed(futures):
                looked[futures[future]] = future.result()
                on_done()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for decoder in decoders:  # so that nobody waits for a deadline to pass
                decoder.deadline_s = 0
                decoder.close()
            raise
    return {video: looked[video] for video in videos}


@contextlib.contextmanager
def _decoders(count: int, deadline_s: float) -> Iterator[list[ChildDecoder]]:
    with tempfile.TemporaryDirectory(prefix="vidalign-") as folder:
        made = [ChildDecoder(SPEC, folder, backend=DEFAULT_BACKEND, deadline_s=deadline_s) for _ in range(count)]
        try:
            yield made
        finally:
            for decoder in made:
                decoder.close()


def alike(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """(name in first, name in second) of videos that look alike, by their signatures; a video is not compared with itself."""
    found: list[tuple[str, str]] = []
    for names, ours in _blocks(first):
        for others, theirs in _blocks(second):
            pairs = ((names[row], others[column]) for row, column in ours.alike(theirs))
            found += [(name, other) for name, other in pairs if name != other]
    return found


def _blocks(signatures: Mapping[str, np.ndarray]) -> Iterator[tuple[list[str], Signatures]]:
    """The signatures a bounded number at a time, with their names: as vectors they are four times as large."""
    names = list(signatures)
    for start in range(0, len(names), BLOCK):
        block = names[start : start + BLOCK]
        yield block, Signatures.of([signatures[name] for name in block])
