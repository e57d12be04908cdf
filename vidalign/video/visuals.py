"""From a name (`vidalign.video.naming`) to a clip: local files for it, a hash of what it shows, and its frames."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator

import numpy as np

from vidalign.errors import DataError, VideoError
from vidalign.types import DEFAULT_BACKEND, Backend, FrameSpec
from vidalign.video import decoding, frame_choice, stills
from vidalign.video.clip import Clip
from vidalign.video.fetching import is_remote, local_file
from vidalign.video.hash_index import HashIndex
from vidalign.video.kept import KeptVideos
from vidalign.video.naming import Visual, images_in, local_path, name_of, short, visual_of


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
        """The frames that `spec` asks for. Raises `VideoError` as `vidalign.video.decoding.decode` does, and as `chosen_frames`."""
        visual = self.visual
        if visual.kind == "image":
            return self._decode(spec, backend)
        if spec.choice is None:
            if visual.asked:
                raise DataError(
                    f"{short(name_of(visual))} is named with a question, and video.choice.kind is uniform; set it to relevance, or "
                    "take the question out of the name"
                )
            return self._decode(spec, backend)
        return chosen_frames(lambda candidates: self._decode(candidates, backend), spec, visual)

    def _decode(self, spec: FrameSpec, backend: Backend) -> Clip:
        visual, files = self.visual, [(path, stills.from_file(path)) for path in self.paths]
        if visual.kind == "image":
            return stills.decode_image(*files[0], spec)
        if visual.fps is not None:
            return stills.decode_frames(files, visual.fps, spec, start_s=visual.start_s, end_s=visual.end_s)
        return decoding.decode(self.paths[0], spec, backend, start_s=visual.start_s, end_s=visual.end_s)


def chosen_frames(decode: Callable[[FrameSpec], Clip], spec: FrameSpec, visual: Visual) -> Clip:
    """Of the candidates that `decode` gives, those that the question in the name calls for, in order.

    Raises:
        ConfigError, DataError: as `vidalign.video.relevance.relevances`; or the name has no question, and it would decide.
    """
    from vidalign.video.relevance import relevances

    assert spec.choice is not None
    assert spec.num_frames is not None
    choice, name = spec.choice, short(name_of(visual))
    if choice.needs_question and not visual.asked:
        raise DataError(
            f"the frames of {name} are chosen by a question (video.choice.relevance={choice.relevance}), and none came"
        )
    share = spec.max_pixels  # of all frames' pixels, those that are shown have their share
    if spec.total_pixels is not None:
        share = min(spec.max_pixels or spec.total_pixels, max(1, spec.total_pixels // spec.num_frames))
    pool = decode(dataclasses.replace(spec, num_frames=choice.pool, max_pixels=share, total_pixels=None, choice=None))
    distinct = sorted(
        {index: at for at, index in reversed(list(enumerate(pool.indices)))}.values()
    )  # short videos repeat theirs
    frames = pool.frames[distinct]
    told = relevances(choice, frames, visual.asked, name) if len(distinct) > choice.keep else None
    positions = frame_choice.chosen(told, frame_choice.entropies(frames), keep=choice.keep, most=spec.num_frames)
    taken = [distinct[at] for at in positions]
    return dataclasses.replace(pool, frames=np.ascontiguousarray(pool.frames[taken]), **pool.taken(taken))


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
