"""What the decoding process does with one name: its frames are in the frame cache, or a reason says why they are not."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from vidalign import stored
from vidalign.errors import ConfigError, DataError, VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import visuals
from vidalign.video.fetching import is_node_fault


def decode_into_cache(
    uri: str,
    spec: FrameSpec,
    cache_dir: str,
    backend: Backend = DEFAULT_BACKEND,
    on_open: Callable[[], None] = lambda: None,
    at_store: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
) -> dict[str, str]:
    """The fields of the process's reply for one uri. Frames that are in the cache are not decoded again, nor fetched.

    `on_open` is called once the files are there, before anything is decoded. `at_store` is entered wherever the cache is looked into
    or written, which takes its time where it is in a store.
    """
    from vidalign.video.frame_cache import FrameCache
    from vidalign.video.hash_index import HashIndex
    from vidalign.video.relevance import identity_of

    hashes = "hashes" if stored.of(cache_dir) is None else ".hashes"  # of this node's files: no other node's business
    cache, index = FrameCache(cache_dir), HashIndex(pathlib.Path(cache_dir) / hashes)

    def cached(content_hash: str) -> str:
        with at_store():
            return cache.backend(content_hash, spec, choice)

    try:
        choice = "" if spec.choice is None else identity_of(spec)
        if (known := visuals.known_hash(uri)) and (backend_then := cached(known)):
            return _reply(frames_path=str(cache.path(known, spec, choice)), backend=backend_then)
        with visuals.opened(uri) as local:
            on_open()
            digest = local.content_hash(index)
            if backend_then := cached(digest):
                return _reply(frames_path=str(cache.path(digest, spec, choice)), backend=backend_then)
            clip = local.decode(spec, backend)
    except VideoError as error:
        return _reply(reason="again" if is_node_fault(error) else error.reason, message=error.message)
    except (ConfigError, DataError) as error:
        return _reply(reason="cache", message=str(error))
    except MemoryError as error:
        return _reply(reason="again", message=f"{uri}: out of memory {error}".strip())
    try:
        with at_store():
            return _reply(frames_path=str(cache.put(digest, spec, clip, choice)), backend=clip.backend)
    except DataError as error:
        return _reply(reason="cache", message=str(error))
    except OSError as error:
        message = (
            f"decoded frames cannot be written to {cache_dir}: {error.strerror}; free some space or set video.cache_dir"
        )
        return _reply(reason="cache", message=message)


def _reply(frames_path: str = "", reason: str = "", message: str = "", backend: str = "") -> dict[str, str]:
    return {"frames_path": frames_path, "reason": reason, "message": message, "backend": backend}
