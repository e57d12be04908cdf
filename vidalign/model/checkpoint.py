"""Policy versions on disk: a complete Hugging Face folder whose `vidalign.json` is written last."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import pathlib
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from vidalign import files, mirror
from vidalign.errors import ModelError
from vidalign.model.folder import model_folder, stored_shapes, weight_files
from vidalign.types import FrameSpec, PolicyVersion

CARD = "vidalign.json"
ADAPTER = "adapter"
GENERATION = "generation_config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
MAX_SHARD_BYTES = 5 * 10**9  # of one safetensors file


def policy_version(path: str | pathlib.Path, parent: str = "") -> PolicyVersion:
    """The version of a checkpoint folder: a hash of its weights, configuration and tokenizer.

    Raises:
        ModelError: the folder is missing or holds no safetensors weights.
    """
    folder = model_folder(str(path))
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; model.path must name a complete Hugging Face model folder")
    weights = weight_files(folder)
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
    keep_adapter: bool = False,
    trust_remote_code: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a complete checkpoint folder from a training module, with adapters merged. Every rank must call it.

    Rank 0 writes weights, config, generation config, processor and chat template, and finally the card `vidalign.json` with the
    version, its parent, and the FrameSpec and prompt it was trained with. The folder replaces an older one when it is complete.
    The adapter of a model in 4 bits is merged into the base's own weights, which are read again, into host memory.
    With `keep_adapter`, an adapter is also there by itself, as peft stores it, in the folder `adapter`.
    Under ZeRO stage 3 the other ranks take part in making the parameters whole, a few at a time.
    """
    import torch.distributed as dist

    from vidalign.model import quantized
    from vidalign.model.rendering import load_processor
    from vidalign.model.turns import turns_of
    from vidalign.model.weights import unwrapped, write_weights

    writes = not dist.is_initialized() or dist.get_rank() == 0
    made = _unfinished(folder)
    if writes:
        _complete(folder)
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        written = model
        if quantized.is_quantized(model):
            written = quantized.merged(model, base, trust_remote_code=trust_remote_code)
        _write_configs(unwrapped(written), made, pathlib.Path(base))
    if writes or zero_stage == 3:
        whole = gathered if zero_stage == 3 else contextlib.nullcontext
        write_weights(
            written if writes else model,
            made if writes else None,
            whole=whole,
            max_shard_bytes=max_shard_bytes,
            like=_stored_shapes(base),
        )
    if keep_adapter:
        _write_adapter(model, made / ADAPTER if writes else None, gathers=zero_stage == 3)
    if writes:
        processor = load_processor(base, trust_remote_code=trust_remote_code)
        processor.save_pretrained(made)
        for name in PROCESSOR_FILES:  # of an older layout, which other programs read
            if (pathlib.Path(base) / name).is_file() and not (made / name).exists():
                shutil.copyfile(pathlib.Path(base) / name, made / name)
        stop_at(made, turns_of(processor).end[-1])
        card = {
            "version": policy_version(made, parent).version,
            "parent": parent,
            "frame_spec": frame_spec.to_row(),
            "plain_prompt": prompt,
        }
        files.write_json(made / CARD, card)
        mirror.put_folder(folder, made, last=CARD)
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


def _stored_shapes(base: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a folder's tensors by name; none for a hub name."""
    return stored_shapes(pathlib.Path(base)) if pathlib.Path(base).is_dir() else {}


def _write_adapter(model: Any, folder: pathlib.Path | None, *, gathers: bool) -> None:
    """`folder`: None on a rank that only takes part in making parameters whole."""
    parameters = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    with gathered(list(parameters.values())) if gathers else contextlib.nullcontext():
        if folder is not None:
            model.save_pretrained(folder, state_dict={name: value.detach().cpu() for name, value in parameters.items()})


def gathered(parameters: Sequence[Any]) -> AbstractContextManager[Any]:
    """Within it, these parameters of ZeRO stage 3 are whole on every rank. Collective."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=None)


def _write_configs(base: Any, made: pathlib.Path, given: pathlib.Path) -> None:
    """All that `save_pretrained` writes beside the weights, for a generation config that transformers would refuse to write, too."""
    from transformers import GenerationConfig

    generation = getattr(base, "generation_config", None)
    if generation is None or not _faults_of(generation):
        base.save_pretrained(made, state_dict={})
        return
    sampling = copy.deepcopy(generation)
    sampling.do_sample = True
    usable = not _faults_of(sampling)
    base.generation_config = sampling if usable else GenerationConfig()
    try:
        base.save_pretrained(made, state_dict={})
    finally:
        base.generation_config = generation
    if not usable and (given / GENERATION).is_file():
        shutil.copyfile(given / GENERATION, made / GENERATION)


def generation_faults(folder: pathlib.Path) -> list[str]:
    """What is wrong with a folder's generation config, as a sentence that says what an export does about it."""
    from transformers import GenerationConfig

    if not (folder / GENERATION).is_file():
        return []
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except (ValueError, OSError, TypeError) as error:
        raise ModelError(
            f"{folder}/{GENERATION} cannot be read: {' '.join(str(error).split())[:300]}; correct that file"
        ) from error
    ends = generation.eos_token_id
    if not all(type(end) is int and end >= 0 for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        raise ModelError(f"{folder}/{GENERATION} has eos_token_id={ends!r}; write the id of a token, or a list of ids")
    faults = _faults_of(generation)
    if not faults:
        return []
    generation.do_sample = True
    what = "is copied as it is" if _faults_of(generation) else "gets do_sample: true in the exported model"
    return [f"{folder}/{GENERATION} contradicts itself and {what}: {faults}"]


def _faults_of(generation: Any) -> str:
    try:
        generation.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split())[:300]
    return ""


def _unfinished(folder: pathlib.Path) -> pathlib.Path:
    """Where an export is written before it takes its folder's place. Its card is the last file."""
    return folder.with_name(f".{folder.name}.new")


def _replace(folder: pathlib.Path, made: pathlib.Path) -> None:
    """Put a complete folder in the place of an older one. Between the two renames there is none: see `_complete`."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _complete(folder: pathlib.Path) -> None:
    """Finish what a process began that died while it replaced this folder."""
    made = _unfinished(folder)
    if not folder.exists() and (made / CARD).is_file():
        with contextlib.suppress(FileNotFoundError):  # another process did the same
            made.rename(folder)


def read_card(folder: str | pathlib.Path) -> dict[str, Any] | None:
    """The card of an exported policy, or None for a folder that vidalign did not write."""
    _complete(pathlib.Path(folder))
    path = pathlib.Path(folder) / CARD
    return files.read_json(path) if path.is_file() else None
