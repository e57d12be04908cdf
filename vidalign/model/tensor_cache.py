"""What a frozen model computes, kept on disk so that it is computed only once: one safetensors file per video or pair.

    <root>/ab/abcdef….safetensors       the name is a hash of everything that the tensors depend on

Runs that share a root share its files. They are written atomically, and nothing in them is pickled.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vidalign import files, mirror, stored
from vidalign.types import stable_hash

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class TensorCache:
    """A folder that every node can read and write."""

    root: pathlib.Path

    def path(self, made_from: Any) -> pathlib.Path:
        """The file for the tensors that depend on this JSON-serialisable value."""
        key = stable_hash(made_from, 32)
        return self.root / key[:2] / f"{key}.safetensors"


def missing(kept: Mapping[str, str | pathlib.Path]) -> set[str]:
    """The names whose files do not exist yet; of a cache in a store, there."""
    paths = {name: pathlib.Path(path) for name, path in kept.items()}
    in_store = {name: path for name, path in paths.items() if stored.of(path) is not None}
    roots = {path.parents[1] for path in in_store.values()}
    there = {root / name for root in roots for name in stored.listing(stored.place_of(root))}
    return {name for name, path in paths.items() if not (path in there if name in in_store else path.is_file())}


def write_tensors(path: pathlib.Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors as one safetensors file, atomically."""
    import safetensors.torch

    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes_atomic(path, safetensors.torch.save(kept))


def read_tensors(path: str | pathlib.Path) -> dict[str, torch.Tensor]:
    """Read what `write_tensors` wrote, onto the CPU."""
    import safetensors.torch

    return safetensors.torch.load(mirror.fetched(path, always=False).read_bytes())
