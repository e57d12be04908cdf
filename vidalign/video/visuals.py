"""From a name (`vidalign.video.naming`) to a clip: local files for it, a hash of what it shows, and its frames."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator

from vidalign.errors import VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import decoding, stills
from vidalign.video.clip import Clip
from vidalign.video.fetching import is_remote, local_file
from vidalign.video.hash_index import HashIndex
from vidalign.video.kept import KeptVideos
from vidalign.video.naming import Visual, images_in, local_path, visual_of


@dataclasses.dataclass(frozen=True)
class LocalVisual:
    """What a name stands for, with the local paths of its files: several for frames. `digests`: those that are known, or ""."""

    visual: Visual
    paths: tuple[str, ...]
    digests: tuple[str, ...] = ()

    def content_hash(self, index: HashIndex | None = None) -> str:
        """Of a whole video file, the SHA-256 of its bytes; else a hash of all files' bytes, in order, and of what the name adds.

        Raises:
            VideoError: a file is missing, empty or cannot be read.
        """
        known = self.digests or ("",) * len(self.paths)
        digests = [found or decoding.content_hash(path, index) for path, found in zip(self.paths, known, strict=True)]
        return _hash(self.visual, digests)

    def decode(self, spec: FrameSpec, backend: Backend = DEFAULT_BACKEND) -> Clip:
        """The frames that `spec` asks for. Raises `VideoError` as `vidalign.video.decoding.decode` does."""
        visual, files = self.visual, [(path, stills.from_file(path)) for path in self.paths]
        if visual.kind == "image":
            return stills.decode_image(*files[0], spec)
        if visual.fps is not None:
            return stills.decode_frames(files, visual.fps, spec, start_s=visual.start_s, end_s=visual.end_s)
        return decoding.decode(self.paths[0], spec, backend, start_s=visual.start_s, end_s=visual.end_s)


def _hash(visual: Visual, digests: list[str]) -> str:
    if not visual.fragment:
        return digests[0]
    return hashlib.sha256(json.dumps([*digests, visual.fragment]).encode()).hexdigest()


def has_remote(name: str) -> bool:
    """Whether something of what a name stands for has to be fetched."""
    return any(is_remote(uri) for uri in visual_of(name).uris)


def known_hash(name: str) -> str:
    """The `LocalVisual.content_hash` of remote files that were fetched before and have not changed, without fetching; else "".

    Raises:
        VideoError: a store does not answer as it should.
    """
    visual = visual_of(name)
    if not all(is_remote(uri) for uri in visual.uris):
        return ""
    kept, digests = KeptVideos.of_node(), []
    for uri in visual.uris:
        digest = kept.digest(uri)
        if not digest:
            return ""
        digests.append(digest)
    return _hash(visual, digests)


@contextlib.contextmanager
def opened(name: str) -> Iterator[LocalVisual]:
    """Local files for a name; remote ones are fetched and kept on this node (`vidalign.video.kept`).

    Raises:
        VideoError: a file cannot be fetched, or a folder is remote, missing, no folder, or without images.
    """
    visual = visual_of(name)
    with contextlib.ExitStack() as copies:
        if visual.kind == "folder":
            yield LocalVisual(visual, _frames_in(visual.uris[0]))
            return
        found = [copies.enter_context(local_file(uri)) for uri in visual.uris]
        yield LocalVisual(visual, tuple(path for path, _ in found), tuple(digest for _, digest in found))


def _frames_in(uri: str) -> tuple[str, ...]:
    folder = local_path(uri)
    if folder is None:
        raise VideoError("unreadable", f"{uri} is a remote folder of frames; give the list of its frames as 'video'")
    try:
        found = tuple(images_in(folder))
    except FileNotFoundError as error:
        raise VideoError("missing", f"no folder at {folder}") from error
    except NotADirectoryError as error:
        raise VideoError("unreadable", f"{folder} is no folder of frames") from error
    except OSError as error:
        raise VideoError("unreadable", f"{folder} cannot be read: {error.strerror}") from error
    if not found:
        raise VideoError("too_few_frames", f"{folder} holds no images")
    return found


def decode(name: str | os.PathLike[str], spec: FrameSpec, backend: Backend = DEFAULT_BACKEND) -> Clip:
    """The frames of a name that `spec` asks for, decoded in this process and without a deadline."""
    with opened(os.fspath(name)) as local:
        return local.decode(spec, backend)
