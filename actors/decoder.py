"""The decode stage: uris in, paths of decoded frames out, on a Ray Data actor pool. No pixels pass through Ray."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import ray.data

from actors.pools import pool
from cluster.node_files import Missed, Passes, this_node
from vidalign.stored import here
from vidalign.types import DEADLINE_S, DEFAULT_BACKEND, Backend, Example, FrameSpec
from vidalign.video import visuals
from vidalign.video.decode_child import ChildDecoder, DecodedVideo

BATCH_SIZE = 8


class Decoder:
    """A Ray Data `map_batches` callable: adds `DecodedVideo` columns to batches that have a "video" column of uris.

    Decoding runs in a child process under a deadline, so a file that hangs or crashes the decoder affects only itself.
    """

    def __init__(
        self,
        spec: FrameSpec,
        cache_dir: str,
        backend: Backend = DEFAULT_BACKEND,
        deadline_s: float = DEADLINE_S,
        gone: Collection[str] = (),
    ) -> None:
        """`gone`: local names that the driver misses too. What else is missing here is this node's fault, see `missed`."""
        self.child = ChildDecoder(spec, here(cache_dir), backend=backend, deadline_s=deadline_s)
        self._gone = frozenset(gone)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [self.child.decode(str(uri)) for uri in batch["video"]]
        missed = {miss.video: json.dumps(miss.to_row()) for miss in self.missed(rows)}
        return {**batch, **to_columns(rows), "missed": np.array([missed.get(row.video, "") for row in rows], dtype=object)}

    def missed(self, rows: Iterable[DecodedVideo]) -> list[Missed]:
        """What is missing on this node alone, as far as it can be known here."""
        node, address = this_node()
        return [
            Missed(node=node, address=address, video=row.video, message=row.message)
            for row in rows
            if row.reason == "missing" and row.video not in self._gone and not visuals.has_remote(row.video)
        ]

    def __del__(self) -> None:
        if hasattr(self, "child"):
            self.child.close()


class ChunkDecoder(Decoder):
    """A Ray Data `map` callable: one row is one chunk of examples, whose videos and images it decodes."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Adds `decoded`, the JSON of a `DecodedVideo` for each video and image of `examples`, the JSON of their rows.

        And `missed`, the JSON of the `Missed` among them: the chunk is then to be handed back.
        """
        examples = [Example.from_row(example) for example in json.loads(row["examples"])]
        videos = [name for example in examples for name in example.decoded]
        decoded = {video: self.child.decode(video) for video in dict.fromkeys(videos)}
        missed = json.dumps([miss.to_row() for miss in self.missed(decoded.values())])
        return {**row, "decoded": json.dumps([decoded[video].to_row() for video in videos]), "missed": missed}


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
    deadline_s: float = DEADLINE_S,
    num_decoders: int = 1,
    fewest_decoders: int | None = None,
    num_cpus: float = 1,
    passes: Passes | None = None,
) -> ray.data.Dataset:
    """A lazy data set with one row for each distinct uri, in order of first appearance if Ray Data preserves order.

    Rows are `DecodedVideo` records: video, frames_path ("" if quarantined), reason, message, backend. Consume it with
    `iter_batches` (streaming) or `take_all`; `DecodedVideo.from_row` reads a row. Their `missed` is the JSON of a `Missed`, or "";
    `decoded_videos` sees to those.
    """
    distinct = list(dict.fromkeys(uris))
    passes = passes or Passes(gone=distinct)
    num_blocks = max(1, -(-len(distinct) // BATCH_SIZE))
    decoder = {"spec": spec, "cache_dir": str(cache_dir), "backend": backend, "deadline_s": deadline_s, "gone": passes.gone}
    return ray.data.from_items([{"video": uri} for uri in distinct], override_num_blocks=num_blocks).map_batches(
        Decoder,
        fn_constructor_kwargs=decoder,
        batch_size=BATCH_SIZE,
        compute=pool(num_decoders, num_blocks, fewest_decoders),
        num_cpus=num_cpus,
        **passes.placement(),
    )


def decoded_videos(
    uris: Iterable[str], spec: FrameSpec, cache_dir: str, *, gone: Collection[str] = (), **options: Any
) -> Iterator[DecodedVideo]:
    """What became of each distinct uri, tried on other nodes where one misses a file that the driver sees; needs Ray.

    Args:
        gone: uris of which the driver knows that they are missing.
        options: `decode_videos`' own.

    Raises:
        ClusterError: no node is left that may see the files.
    """
    passes, todo = Passes(gone), list(dict.fromkeys(uris))
    while todo:
        missed = []
        for row in decode_videos(todo, spec, cache_dir, passes=passes, **options).iter_rows():
            if row["missed"]:
                missed.append(Missed.from_row(json.loads(row["missed"])))
            else:
                found = DecodedVideo.from_row(row)
                yield dataclasses.replace(found, frames_path=here(found.frames_path))
        todo = [miss.video for miss in missed]
        passes.again(missed)
