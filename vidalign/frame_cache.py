"""Decoded frames on disk, content-addressed: one safetensors file for each (content of the video, FrameSpec).

    <root>/ab/abcdef….<FrameSpec.key()>.safetensors      frames uint8 [F, H, W, 3] + where they were taken from

Two videos with equal bytes share a file, and a changed video never meets stale frames. Files are written atomically and
carry a checksum: a torn or damaged one is a miss, to be decoded again, and never served. Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zlib

import numpy as np
import safetensors
import safetensors.numpy

from vidalign import files
from vidalign.errors import DataError
from vidalign.types import FrameSpec
from vidalign.video import Clip


@dataclasses.dataclass(frozen=True)
class FrameCache:
    """A folder of decoded clips that every node can read and write; any number of processes may use it at once."""

    root: str | os.PathLike[str]

    def path(self, content_hash: str, spec: FrameSpec) -> pathlib.Path:
        return pathlib.Path(self.root) / content_hash[:2] / f"{content_hash}.{spec.key()}.safetensors"

    def get(self, content_hash: str, spec: FrameSpec) -> Clip | None:
        """The stored clip, or None where there is none or where the file is damaged."""
        path = self.path(content_hash, spec)
        if not path.is_file():
            return None
        try:
            return load_clip(path)
        except DataError:
            return None  # decoded again by the caller, and overwritten by `put`

    def put(self, content_hash: str, spec: FrameSpec, clip: Clip) -> pathlib.Path:
        """Store a clip. Raises `OSError` where the folder cannot be written."""
        path = self.path(content_hash, spec)
        files.write_bytes_atomic(path, _to_bytes(clip), durable=False)  # a torn file is a miss
        return path


def _to_bytes(clip: Clip) -> bytes:
    facts = {
        "fps": clip.fps,
        "total_num_frames": clip.total_num_frames,
        "duration": clip.duration,
        "indices": list(clip.indices),
        "backend": clip.backend,
        "crc32": zlib.crc32(clip.frames.data),
    }
    return safetensors.numpy.save({"frames": clip.frames}, metadata={"clip": json.dumps(facts)})


def load_clip(path: str | os.PathLike[str]) -> Clip:
    """Read a clip that `FrameCache.put` wrote.

    Raises:
        DataError: no such file, or one that is torn or damaged.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            facts = json.loads(file.metadata()["clip"])
            frames = np.ascontiguousarray(file.get_tensor("frames"))
        if zlib.crc32(frames.data) != facts.pop("crc32"):
            raise DataError(f"{os.fspath(path)} is damaged (its checksum differs); decode the video again")
        return Clip(frames=frames, **{**facts, "indices": tuple(facts["indices"])})
    except FileNotFoundError as error:
        raise DataError(f"no decoded frames at {os.fspath(path)}; decode the video again") from error
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{os.fspath(path)} is not a whole frame file ({error}); decode the video again") from error
