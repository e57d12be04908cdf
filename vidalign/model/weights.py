"""A model's weights on disk as Hugging Face's `save_pretrained` writes them, read part by part: the model is never whole in one place.

    parameters, perhaps spread over ranks ─► one tensor at a time, whole ─► rank 0's host memory ─► a shard, once it is full

What is written (names, ties, conversions, shards) is planned on the meta device by transformers' own functions.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a stored tensor comes from: `read` gives it, of type `dtype`, while all `parameters` are whole."""

    dtype: torch.dtype
    parameters: tuple[Tensor, ...]
    read: Callable[[], Tensor]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is written.

    Attributes:
        groups: names of the model's tensors that are read one after the other and converted together, in the order of the shards.
        shards: {file name: names of the tensors in it}.
        index: the content of model.safetensors.index.json, None for a single file.
        convert: from tensors by their names in the model to tensors by their names in files.
    """

    groups: Sequence[Sequence[str]]
    shards: Mapping[str, Sequence[str]]
    index: dict[str, Any] | None
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]


@torch.no_grad()
def write_weights(
    model: Any,
    folder: pathlib.Path | None,
    *,
    whole: Callable[[Sequence[Tensor]], AbstractContextManager[Any]],
    max_shard_bytes: int,
    like: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write a model's safetensors into a folder; adapters (LoRA) are merged, the model stays as it is.

    At no time is more whole than the parameters of one linear layer on each device, and on the host of the writing rank the
    tensors of a shard and of one block of the model.

    Args:
        folder: None on a rank that only takes part in making parameters whole.
        whole: a context in which parameters are whole on this rank. Collective where they are spread over ranks.
        max_shard_bytes: of a file; a larger tensor has a file of its own.
        like: shapes, by name, of the checkpoint that the model was loaded from. transformers 5.19 turns experts that are stored as
            [experts, in, out] when it reads them, and not back when it writes them; what reads that checkpoint reads this one.
    """
    from safetensors.torch import save_file

    sources = tensors_of(model)
    plan = plan_files(unwrapped(model), sources, max_shard_bytes, like or {})
    waiting, ready = dict(plan.shards), dict[str, Tensor]()
    for group in plan.groups:
        read = {}
        for name in group:
            with whole(sources[name].parameters):
                if folder is not None:
                    read[name] = on_host(sources[name].read())
        if folder is None:
            continue
        ready |= plan.convert(read)
        del read
        for file in [file for file, names in waiting.items() if ready.keys() >= set(names)]:
            tensors = {name: ready.pop(name).contiguous() for name in waiting.pop(file)}
            save_file(tensors, folder / file, metadata={"format": "pt"})
            del tensors
    if folder is not None:
        assert not waiting, f"never complete: {list(waiting)}"
        assert not ready, f"in no shard: {list(ready)}"
        if plan.index is not None:
            text = json.dumps(plan.index, indent=2, sort_keys=True) + "\n"
            (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def on_host(tensor: Tensor) -> Tensor:
    """A copy that outlives the device's."""
    return tensor.detach().to("cpu", copy=True)


def unwrapped(model: Any) -> Any:
    """The model inside an adapter, or itself."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model


def tensors_of(model: Any) -> dict[str, Source]:
    """Every stored tensor of a model, by its name in the model without adapters; those of adapted layers are merged ones."""
    base = unwrapped(model)
    adapted = {name: module for name, module in base.named_modules() if hasattr(module, "lora_A")}
    sources: dict[str, Source] = {}
    for name, tensor in base.state_dict(keep_vars=True).items():
        layer_name, _, inside = name.partition(".base_layer.")
        layer = adapted.get(layer_name)
        if layer is not None and inside == "weight":
            sources[f"{layer_name}.{inside}"] = Source(tensor.dtype, tuple(layer.parameters()), _merged(layer))
        elif layer is not None:
            sources[f"{layer_name}.{inside}"] = _as_it_is(tensor)
        elif name.rpartition(".lora_")[0] not in adapted:
            sources[name] = _as_it_is(tensor)
    return sources


def _as_it_is(tensor: Tensor) -> Source:
    return Source(tensor.dtype, (tensor,) if isinstance(tensor, torch.nn.Parameter) else (), lambda: tensor)


def _merged(layer: Any) -> Callable[[], Tensor]:
    def read() -> Tensor:
        weight = layer.get_base_layer().weight.detach().clone()
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                weight += layer.get_delta_weight(adapter)
        return weight

    return read


def plan_files(
    base: Any, sources: Mapping[str, Source], max_shard_bytes: int, like: Mapping[str, tuple[int, ...]] | None = None
) -> Plan:
    """What `save_pretrained` would write of this model, without adapters and without its weights; `like`: see `write_weights`."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    config = copy.deepcopy(base.config)
    config._attn_implementation = "sdpa"  # transformers takes no other name for one of its own
    with torch.device("meta"):
        outline = type(base)(config)
    outline._weight_conversions = getattr(base, "_weight_conversions", None)
    stored = outline.state_dict()
    assert stored.keys() == sources.keys(), sorted(stored.keys() ^ sources.keys())
    ignored = set(outline._keys_to_ignore_on_save or ())
    shapes = {
        name: torch.empty(tensor.shape, dtype=sources[name].dtype, device="meta")
        for name, tensor in stored.items()
        if name not in ignored
    }

    def convert(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        reverted = revert_weight_conversion(outline, tensors)
        return {name: _turned(tensor, (like or {}).get(name)) for name, tensor in reverted.items()}

    shapes = remove_tied_weights_from_state_dict(shapes, outline)
    made = convert(dict(shapes))
    split = split_torch_state_dict_into_shards(
        made, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes
    )
    index = {
        "metadata": {"total_parameters": outline.num_parameters(), **split.metadata},
        "weight_map": split.tensor_to_filename,
    }
    return Plan(
        groups=_groups(shapes, made, convert),
        shards=split.filename_to_tensors,
        index=index if split.is_sharded else None,
        convert=convert,
    )


def _turned(tensor: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """A tensor, its last two axes exchanged if only that gives it this shape."""
    if shape is None or tensor.ndim < 3 or tuple(tensor.shape) == shape:
        return tensor
    other = tensor.transpose(-1, -2)
    return other.contiguous() if tuple(other.shape) == shape else tensor


def _groups(
    shapes: dict[str, Tensor],
    made: Mapping[str, Tensor],
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> list[list[str]]:
    """Names by block of the model, the first number in them, in the order in which their conversions are stored.

    Where a conversion joins tensors of several blocks, everything is one group.
    """
    blocks: dict[str, list[str]] = {}
    for name in shapes:
        blocks.setdefault(_block(name), []).append(name)
    place = {name: number for number, name in enumerate(made)}
    first: dict[str, int] = {}
    for block, names in blocks.items():
        alone = convert({name: shapes[name] for name in names})
        if any(name not in made or made[name].shape != tensor.shape for name, tensor in alone.items()):
            return [list(shapes)]
        first[block] = min(place[name] for name in alone)
    return [blocks[block] for block in sorted(blocks, key=first.__getitem__)]


def _block(name: str) -> str:
    """`a.layers.3` of `a.layers.3.b.c`; a tensor outside of numbered blocks is one of its own."""
    words = name.split(".")
    number = next((place for place, word in enumerate(words) if word.isdigit()), len(words))
    return ".".join(words[: number + 1])
