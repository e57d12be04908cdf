"""Policy versions on disk: a complete Hugging Face folder whose `vidalign.json` is written last."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from vidalign import files
from vidalign.errors import ModelError
from vidalign.types import FrameSpec, PolicyVersion

CARD = "vidalign.json"
MAX_SHARD_BYTES = 5 * 10**9  # of one safetensors file


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
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a complete checkpoint folder from a training module, with adapters merged. Every rank must call it.

    Rank 0 writes weights, config, generation config, processor and chat template, and finally the card `vidalign.json` with the
    version, its parent, and the FrameSpec and prompt it was trained with. The folder replaces an older one when it is complete.
    Under ZeRO stage 3 the other ranks take part in making the parameters whole, a few at a time.
    """
    import torch.distributed as dist

    from vidalign.model.rendering import load_processor
    from vidalign.model.turns import turns_of
    from vidalign.model.weights import unwrapped, write_weights

    writes = not dist.is_initialized() or dist.get_rank() == 0
    made = folder.with_name(f".{folder.name}.new")
    if writes:
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        unwrapped(model).save_pretrained(made, state_dict={})  # all but the weights
    if writes or zero_stage == 3:
        whole = _gathered if zero_stage == 3 else contextlib.nullcontext
        write_weights(model, made if writes else None, whole=whole, max_shard_bytes=max_shard_bytes)
    if writes:
        processor = load_processor(base, trust_remote_code=trust_remote_code)
        processor.save_pretrained(made)
        stop_at(made, turns_of(processor).end[-1])
        card = {
            "version": policy_version(made, parent).version,
            "parent": parent,
            "frame_spec": frame_spec.to_row(),
            "plain_prompt": prompt,
        }
        files.write_json(made / CARD, card)
        _replace(folder, made)
    if dist.is_initialized():
        dist.barrier()


def stop_at(folder: pathlib.Path, token: int) -> None:
    """Let generation stop at the id that ends a turn wherever the folder is served, by its generation config."""
    path = folder / "generation_config.json"
    config = files.read_json(path) if path.is_file() else {}
    known = config.get("eos_token_id")
    ids = known if isinstance(known, list) else [] if known is None else [known]
    if token not in ids:
        files.write_json(path, {**config, "eos_token_id": [*ids, token] if ids else token})


def _gathered(parameters: Sequence[Any]) -> AbstractContextManager[Any]:
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=None)


def _replace(folder: pathlib.Path, made: pathlib.Path) -> None:
    """Put a complete folder in the place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_card(folder: str | pathlib.Path) -> dict[str, Any] | None:
    """The card of an exported policy, or None for a folder that vidalign did not write."""
    path = pathlib.Path(folder) / CARD
    return files.read_json(path) if path.is_file() else None
