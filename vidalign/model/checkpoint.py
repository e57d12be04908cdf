"""Policy versions on disk: a complete Hugging Face folder whose `vidalign.json` is written last."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
from typing import Any

from vidalign import files
from vidalign.errors import ModelError
from vidalign.types import FrameSpec, PolicyVersion

CARD = "vidalign.json"


def policy_version(path: str | pathlib.Path, parent: str = "") -> PolicyVersion:
    """The version of a checkpoint folder: a hash of its weights, configuration and tokenizer.

    Raises:
        ModelError: the folder is missing or holds no safetensors weights.
    """
    folder = pathlib.Path(path)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"no Hugging Face model at {folder}: config.json is missing; model.path must name a checkpoint folder"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"{folder} holds no *.safetensors weights; pickled weights are not loaded, convert them first")
    digest = hashlib.sha256()
    for file in [*weights, folder / "config.json", folder / "tokenizer.json"]:
        if file.is_file():
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                for block in iter(lambda: stream.read(1 << 20), b""):
                    digest.update(block)
    return PolicyVersion(version=digest.hexdigest()[:12], path=str(folder.absolute()), parent=parent)


def export_policy(
    model: Any,
    folder: pathlib.Path,
    *,
    base: str,
    parent: str,
    frame_spec: FrameSpec,
    prompt: str,
    zero_stage: int,
    trust_remote_code: bool = False,
) -> None:
    """Write a complete checkpoint folder from a training module, with adapters merged. Every rank must call it.

    Rank 0 writes weights, config, generation config, processor and chat template, and finally the card `vidalign.json` with the
    version, its parent, and the FrameSpec and prompt it was trained with.
    """
    import deepspeed
    import torch.distributed as dist

    from vidalign.model.rendering import load_processor

    parameters = list(model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None, enabled=zero_stage == 3):
        if not dist.is_initialized() or dist.get_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
            merged.save_pretrained(folder, safe_serialization=True)
            load_processor(base, trust_remote_code=trust_remote_code).save_pretrained(folder)
            version = policy_version(folder, parent)
            card = {
                "version": version.version,
                "parent": parent,
                "frame_spec": frame_spec.to_row(),
                "plain_prompt": prompt,
            }
            files.write_json(folder / CARD, card)
    if dist.is_initialized():
        dist.barrier()


def read_card(folder: str | pathlib.Path) -> dict[str, Any] | None:
    """The card of an exported policy, or None for a folder that vidalign did not write."""
    path = pathlib.Path(folder) / CARD
    return files.read_json(path) if path.is_file() else None
