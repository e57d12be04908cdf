"""Decoded frames on disk, content-addressed: one safetensors file for each pair of video content and FrameSpec.

    <root>/ab/abcdef….<FrameSpec.key()>.<RULES>.safetensors      frames uint8 [F, H, W, 3] + where they were taken from

Frames that are chosen by more than a FrameSpec, such as by a question, have the key of that choice after the FrameSpec's.

Two videos with equal bytes share a file. A video that changed gets no stale frames, nor does one that an earlier version decoded
otherwise (`RULES`). Files are written atomically and carry a checksum, which is verified at every read: a torn or damaged file
counts as missing, is decoded again, and is never served.
Nothing is pickled.

Files are read and not memory-mapped: a process with a mapped file would die of SIGBUS when another node replaces the file on a
network file system.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import zlib
from typing import Any

import numpy as np

from vidalign import files, mirror
from vidalign.errors import DataError
from vidalign.types import FrameSpec
from vidalign.video.clip import Clip
from vidalign.video.signature import packed, signature, unpacked

RULES = "t3"  # changed whenever some video gives other frames or times than before; "t3": square pixels, SDR
PAGE_BYTES = 4096
BLOCK_BYTES = 128 * PAGE_BYTES  # read and verified at a time, while it is still in the processor's cache


@dataclasses.dataclass(frozen=True)
class FrameCache:
    """A folder of decoded clips that every node can read and write; any number of processes may use it at once."""

    root: str | os.PathLike[str]

    def path(self, content_hash: str, spec: FrameSpec, choice: str = "") -> pathlib.Path:
        """Where the clip of a video with this content is stored, or would be.

        `choice`: a hash of what else decided which frames were taken; "" where the FrameSpec alone did.
        """
        keys = ".".join(filter(None, (content_hash, spec.key(), choice, RULES)))
        return pathlib.Path(self.root) / content_hash[:2] / f"{keys}.safetensors"

    def holds(self, content_hash: str, spec: FrameSpec, choice: str = "") -> bool:
        """Whether the clip is there and intact: all of it is read and verified, but nothing is kept."""
        return bool(self.backend(content_hash, spec, choice))

    def backend(self, content_hash: str, spec: FrameSpec, choice: str = "") -> str:
        """What decoded the clip; "" where `holds` is false, and the caller decodes again, which `put` overwrites."""
        return _backend(self.path(content_hash, spec, choice))

    def put(self, content_hash: str, spec: FrameSpec, clip: Clip, choice: str = "") -> pathlib.Path:
        """Store a clip. Raises `OSError` if the folder cannot be written."""
        path = self.path(content_hash, spec, choice)
        write_clip(path, clip)
        return path


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file holds a clip, intact: all of it is read and verified, but nothing is kept."""
    return bool(_backend(path))


def _backend(path: pathlib.Path) -> str:
    try:
        return str(_read(mirror.fetched(path), keep=False)[1]["backend"])
    except DataError:
        return ""


def write_clip(path: pathlib.Path, clip: Clip) -> None:
    """Store a clip in a file of its own. Raises `OSError` if the folder cannot be written."""
    # Not durable: a torn file counts as missing.
    files.write_bytes_atomic(path, _header(clip), clip.frames.reshape(-1).data, durable=False)


def load_clip(path: str | os.PathLike[str]) -> Clip:
    """Read a clip that `FrameCache.put` wrote.

    Raises:
        DataError: the file is missing, torn or damaged.
    """
    frames, facts = _read(path, keep=True)
    return Clip(
        frames=frames,
        fps=facts["fps"],
        total_num_frames=facts["total_num_frames"],
        duration_s=facts["duration"],
        indices=tuple(facts["indices"]),
        backend=facts["backend"],
        times=tuple(facts["times"]) if "times" in facts else None,
    )


def read_shape(path: str | os.PathLike[str]) -> tuple[tuple[int, ...], float]:
    """The shape [F, H, W, 3] of a stored clip's frames, and the source's seconds. Reads the header alone; raises `DataError`."""
    try:
        with mirror.open_file(path) as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return tuple(header["frames"]["shape"]), float(json.loads(header["__metadata__"]["clip"])["duration"])
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"{os.fspath(path)} is not a complete frame file ({error}); decode the video again") from error


def load_signature(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The signature of a clip (`vidalign.video.signature`), read without its frames; None of a file that has none or is damaged."""
    try:
        with mirror.open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), size)))
        return unpacked(json.loads(header["__metadata__"]["clip"])["signature"])
    except (OSError, TypeError, KeyError, ValueError):
        return None


def _header(clip: Clip) -> bytes:
    """What precedes the frames. Files of finished runs use these names: changing one would make them unreadable."""
    facts = json.dumps(
        {
            "signature": packed(signature(clip.frames)),
            "fps": clip.fps,
            "total_num_frames": clip.total_num_frames,
            "duration": clip.duration_s,
            "indices": clip.indices,
            "backend": clip.backend,
            **({} if clip.times is None else {"times": clip.times}),
        }
    )
    shape, pixels = list(clip.frames.shape), clip.frames.reshape(-1).data
    checksum = _checksum_of_facts(shape, facts)
    for at in range(0, len(pixels), BLOCK_BYTES):
        checksum = _checksum(pixels[at : at + BLOCK_BYTES], checksum)
    tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, len(pixels)]}
    header = json.dumps({"__metadata__": {"clip": facts, "checksum": str(checksum)}, "frames": tensor}).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _read(path: str | os.PathLike[str], *, keep: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """The frames (or, without `keep`, the last block) and a clip's other fields. Raises `DataError` as `load_clip` does."""
    name = os.fspath(mirror.fetched(path, always=False))
    try:
        with open(name, "rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), file_size)))
            metadata, shape = header["__metadata__"], header["frames"]["shape"]
            size = math.prod(shape)
            if size != file_size - file.tell():
                raise DataError(f"{name} is incomplete ({file_size - file.tell()} bytes of {size}); decode the video again")
            frames = np.empty(shape if keep else min(size, BLOCK_BYTES), np.uint8)
            pixels, checksum = frames.reshape(-1).data, _checksum_of_facts(shape, metadata["clip"])
            for at in range(0, size, BLOCK_BYTES):
                block = pixels[at : at + BLOCK_BYTES] if keep else pixels[: size - at]
                file.readinto(block)
                checksum = _checksum(block, checksum)
        if str(checksum) != metadata["checksum"]:
            raise DataError(f"{name} is damaged (its checksum differs); decode the video again")
        return frames, json.loads(metadata["clip"])
    except FileNotFoundError as error:
        raise DataError(f"no decoded frames at {name}; decode the video again") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}; decode the video again") from error
    except (TypeError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} is not a complete frame file ({error}); decode the video again") from error


def _checksum_of_facts(shape: list[int], facts: str) -> int:
    return zlib.crc32(f"{shape} {facts}".encode())


def _checksum(block: memoryview, start: int) -> int:
    """CRC-32 of the sums of each page's 64-bit words, and of the bytes after the last whole page.

    Six times as fast as a CRC-32 of all bytes. It notices a page that is missing, zeroed, moved or taken from another file, but
    for a chance of 1 in 2^32, and a change inside a page unless the sum of the page's words stays the same.
    """
    whole = len(block) // PAGE_BYTES * PAGE_BYTES
    words = np.frombuffer(block[:whole], np.dtype("<u8")).reshape(-1, PAGE_BYTES // 8)
    return zlib.crc32(block[whole:], zlib.crc32(words.sum(axis=1, dtype="<u8"), start))
