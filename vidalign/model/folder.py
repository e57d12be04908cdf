"""A model folder: where it is, and which of its files hold weights. Pickled weights are never read, because loading one can run code.

model.path ─► model_folder (a path, or a hub name) ─► weight_files ─► headers {tensor: dtype, shape}
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import struct
from collections.abc import Sequence
from typing import Any

from vidalign import mirror, storage, stored
from vidalign.errors import ModelError
from vidalign.files import read_json

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FETCHED = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py")  # of a hub's model, beside its weights
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


def model_folder(path: str, *, weights: bool = True) -> pathlib.Path:
    """The local folder of `model.path`: a folder, which may start with ~, or a hub name or a store's uri, fetched unless it is here.

    Args:
        weights: also fetch the weights of a hub's or a store's model.

    Raises:
        ModelError: there is no such folder, or the hub cannot be reached or does not have it.
        ConfigError, DataError: as `vidalign.storage.staged`.
    """
    patterns = [*FETCHED, *(["*.safetensors"] if weights else [])]
    if storage.is_uri(path):
        return storage.staged("model.path", path, patterns)
    folder = pathlib.Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ModelError(f"model.path={path} is a file; give the folder that holds it")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"no model folder at {path}; model.path names a Hugging Face folder or a hub name like owner/model")
    return _fetched(path, patterns)


def stage_model(path: str, folder: str) -> str:
    """Fetch a model onto this node that the driver has from a store. Returns where this node has it.

    Args:
        path: the run's `model.path`.
        folder: the driver's: what it staged of `model.path` where that is a uri, or a round's model, of a run in a store as well.

    Raises:
        ModelError: this node would keep it elsewhere than the driver.
        ConfigError, DataError: as `vidalign.storage.staged`.
    """
    if (place := stored.of(folder)) is not None:
        mirror.refresh(place.local, everything=True)
        return str(place.local)
    if not storage.is_uri(path) or (os.path.isdir(folder) and not storage.is_staged(folder)):
        return folder
    found = model_folder(path)
    if found != pathlib.Path(folder):
        raise ModelError(
            f"model.path={path} is staged at {found} on this node, and at {folder} on the driver's: the model was changed in the "
            f"store, or the nodes differ in {storage.FOLDER}; set that to one path on all nodes, and run the same command again"
        )
    return folder


def _fetched(name: str, patterns: Sequence[str]) -> pathlib.Path:
    import huggingface_hub
    import huggingface_hub.errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=list(patterns)))
    except (
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.LocalEntryNotFoundError,
        OSError,
        ValueError,
    ) as error:
        raise ModelError(
            f"there is no folder {name}, and the hub's model of that name cannot be fetched ({' '.join(str(error).split())[:200]}); "
            "give a folder, correct the name, or fetch it where the hub can be reached"
        ) from error


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold a model's weights: model.safetensors, or all that its index names.

    Raises:
        ModelError: there are none, some are missing, or the folder holds pickled weights or an adapter alone.
    """
    if (folder / INDEX).is_file():
        wanted = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        absent = [name for name in wanted if not (folder / name).is_file()]
        if absent:
            raise ModelError(
                f"{folder} lacks {len(absent)} of its {len(wanted)} weight files, first {absent[0]}; download the rest"
            )
        if (folder / WEIGHTS).is_file() and wanted != [WEIGHTS]:
            raise ModelError(
                f"{folder} holds both {WEIGHTS} and {INDEX}, which names other files; transformers would read the one and vLLM the "
                "others: remove what is old"
            )
        return [folder / name for name in wanted]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if any(folder.glob("adapter_*.safetensors")):
        raise ModelError(f"{folder} holds a LoRA adapter and not a model; merge it into its base model and save the result")
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickled[0]}), which can run code when loaded; convert them with "
            "save_pretrained(..., safe_serialization=True) in a place that you trust"
        )
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if found:
        raise ModelError(
            f"{folder} holds {found[0]}, but neither {WEIGHTS} nor {INDEX}, which say what is to be read; save the model with "
            "save_pretrained, or download the index"
        )
    raise ModelError(f"{folder} holds no *.safetensors weights; model.path must name a complete Hugging Face model folder")


def read_headers(files: Sequence[pathlib.Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{name: (dtype as safetensors writes it, shape)} of every tensor. Raises `ModelError` for a file that is broken or cut."""
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for path in files:
        for name, entry in _header(path).items():
            if name != "__metadata__":
                found[name] = entry["dtype"], tuple(entry["shape"])
    return found


def stored_shapes(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every stored tensor. Raises `ModelError` as `weight_files` and `read_headers` do."""
    return {name: shape for name, (_, shape) in read_headers(weight_files(folder)).items()}


def _header(path: pathlib.Path) -> dict[str, Any]:
    """Read a safetensors header. The format is a little-endian 64-bit length, that many bytes of JSON, then the data."""
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
            raise ModelError(f"{path} is not a complete safetensors file (is it a Git LFS pointer?); download it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise ModelError(f"{path} has a broken safetensors header; download it again") from error
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if path.stat().st_size < 8 + length + end:
        raise ModelError(
            f"{path} is cut: its header promises {8 + length + end:,} bytes, but it has {path.stat().st_size:,}; download it again"
        )
    return header


def missing_package(path: str, error: ImportError) -> str:
    """The sentence for a package that a model's code or processor imports and that is not installed."""
    text = " ".join(str(error).split())
    named = re.search(r"pip install ((?:-U |--upgrade )?[A-Za-z0-9_.\-\[\]=<>]+)", text)
    package = (named[1].strip("`'\".,") if named else None) or error.name
    if not package:
        return f"{path} needs a package that is not installed: {text[:300]}; install it on every node"
    return f"{path} needs a package that is not installed; run `pip install {package}` on every node ({text[:160]})"
