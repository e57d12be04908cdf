"""The decode stage: uris in, paths of decoded frames out, on a Ray Data actor pool. No pixels pass through Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import ray.data

from vidalign.types import DEFAULT_BACKEND, Backend, Example, FrameSpec
from vidalign.video.decode_child import ChildDecoder, DecodedVideo

BATCH_SIZE = 8


class Decoder:
    """A Ray Data `map_batches` callable: adds `DecodedVideo` columns to batches that have a "video" column of uris.

    Decoding runs in a child process under a deadline, so a file that hangs or crashes the decoder affects only itself.
    """

    def __init__(
        self, spec: FrameSpec, cache_dir: str, backend: Backend = DEFAULT_BACKEND, deadline_s: float = 60.0
    ) -> None:
        self.child = ChildDecoder(spec, cache_dir, backend=backend, deadline_s=deadline_s)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, **to_columns([self.child.decode(str(uri)) for uri in batch["video"]])}

    def __del__(self) -> None:
        self.child.close()


class ChunkDecoder(Decoder):
    """A Ray Data `map` callable: one row is one chunk of examples, whose videos and images it decodes."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `decoded`, the JSON of a `DecodedVideo` for each video and image of `examples`, the JSON of their rows."""
        examples = [Example.from_row(example) for example in json.loads(row["examples"])]
        videos = [name for example in examples for name in example.context.visuals]
        decoded = {video: self.child.decode(video).to_row() for video in dict.fromkeys(videos)}
        return {**row, "decoded": json.dumps([decoded[video] for video in videos])}


def to_columns(rows: list[DecodedVideo]) -> dict[str, Any]:
    """Rows in Ray Data's batch format. Strings stay Python objects, because NumPy would pad them to the longest."""
    return {
        "video": np.array([row.video for row in rows], dtype=object),
        "frames_path": np.array([row.frames_path for row in rows], dtype=object),
        "reason": np.array([row.reason for row in rows], dtype=object),
        "message": np.array([row.message for row in rows], dtype=object),
        "backend": np.array([row.backend for row in rows], dtype=object),
    }


def decode_videos(
    uris: Iterable[str],
    spec: FrameSpec,
    cache_dir: str,
    *,
    backend: Backend = DEFAULT_BACKEND,
    deadline_s: float = 60.0,
    num_decoders: int = 1,
    num_cpus: float = 1,
) -> ray.data.Dataset:
    """A lazy data set with one row for each distinct uri, in order of first appearance if Ray Data preserves order.

    Rows are `DecodedVideo` records: video, frames_path ("" if quarantined), reason, message, backend. Consume it with
    `iter_batches` (streaming) or `take_all`; `DecodedVideo.from_row` reads a row.
    """
    distinct = list(dict.fromkeys(uris))
    num_blocks = max(1, -(-len(distinct) // BATCH_SIZE))
    dataset = ray.data.from_items([{"video": uri} for uri in distinct], override_num_blocks=num_blocks)
    return dataset.map_batches(
        Decoder,
        fn_constructor_kwargs={"spec": spec, "cache_dir": str(cache_dir), "backend": backend, "deadline_s": deadline_s},
        batch_size=BATCH_SIZE,
        compute=ray.data.ActorPoolStrategy(size=num_decoders),
        num_cpus=num_cpus,
    )
