"""Do the weights of a folder fit their architecture, each other and the tokenizer, and are they numbers?"""

from __future__ import annotations

import pathlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from vidalign.errors import ModelError
from vidalign.model.folder import weight_files

NAMED = 3  # tensors that a message names


def check_report(path: str, model: Any, report: Mapping[str, Any]) -> None:
    """Raise `ModelError` where the loading report of transformers says that tensors and architecture do not fit each other."""
    kind = type(model).__name__
    missing, unexpected = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    shaped = sorted((name, tuple(stored), tuple(wanted)) for name, stored, wanted in report["mismatched_keys"])
    found = []
    if missing:
        found.append(f"lacks {_some(missing)} of a {kind}, which would be random")
    if unexpected:
        found.append(f"holds {_some(unexpected)} that a {kind} has no place for")
    if shaped:
        _, stored, wanted = shaped[0]
        found.append(
            f"holds {_some([name for name, *_ in shaped])} of another shape, the first {stored} where config.json means {wanted}"
        )
    if found:
        raise ModelError(f"{path} {' and '.join(found)}; {_way_out(model, missing, bool(shaped))}")


def _way_out(model: Any, missing: Collection[str], shaped: bool) -> str:
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is head]
    if missing and heads and all(name.startswith(f"{heads[0]}.") for name in missing):
        return (
            "the output layer is a layer of its own by config.json; set tie_word_embeddings to true there if it is the input "
            "embeddings, or download the whole checkpoint"
        )
    if shaped and not missing:
        return "config.json and weights are not of one model; take both from the same place"
    return (
        "the names are not those of this architecture or a part is missing; download the whole checkpoint, or save it with "
        "save_pretrained"
    )


def check_finite(path: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `ModelError` for weights that are NaN or infinite. Reads each once: 0.1 to 0.2 s a GB."""
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        raise ModelError(_not_finite(path, bad))


def check_stored_numbers(folder: pathlib.Path, *, seconds: float) -> tuple[int, int]:
    """`check_finite` for the weights on disk, file by file, for so many seconds at most.

    Returns:
        Bytes that were looked at, and bytes in all.
    """
    from safetensors import safe_open

    deadline, seen, files = time.monotonic() + seconds, 0, weight_files(folder)
    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (it is no mapping)
                if time.monotonic() > deadline:
                    break
                tensor = opened.get_tensor(name)
                if not _is_finite(tensor):
                    raise ModelError(_not_finite(str(folder), [name]))
                seen += tensor.nbytes
    return seen, sum(file.stat().st_size for file in files)


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.device.type == "meta":
        return True
    tensor = tensor.detach()
    low, high = torch.aminmax(tensor.float() if tensor.dtype.itemsize == 1 else tensor)  # NaN wins over every number
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _not_finite(path: str, names: Collection[str]) -> str:
    return (
        f"{path} holds numbers that are NaN or infinite in {_some(names)}; the training that wrote it went wrong, or the file is "
        "damaged: download it again, or take an earlier checkpoint"
    )


def check_vocabulary(path: str, model: Any, tokenizer: Any) -> None:
    """Raise `ModelError` for a tokenizer that gives ids beyond the model's embeddings."""
    rows = model.get_input_embeddings().weight.shape[0]
    words = tokenizer.get_vocab()
    beyond = sorted((number, word) for word, number in words.items() if number >= rows)
    if beyond:
        number, word = beyond[-1]
        raise ModelError(
            f"{path}: the tokenizer gives {word!r} the id {number:,}, but the model has embeddings for ids below {rows:,}; "
            f"{len(beyond):,} of its words have none. Use the tokenizer of this model, or resize the embeddings"
        )


def _some(names: Collection[str]) -> str:
    listed = list(names)
    shown = ", ".join(listed[:NAMED])
    return f"{len(listed):,} tensor{'s' if len(listed) > 1 else ''} ({shown}{', …' if len(listed) > NAMED else ''})"


def untied(model: Any) -> list[tuple[str, str]]:
    """Names of the parameters that config.json ties and that are not one and the same."""
    wanted = model.get_expanded_tied_weights_keys(all_submodels=True)
    return [
        (one, other)
        for one, other in wanted.items()
        if model.get_parameter_or_buffer(one) is not model.get_parameter_or_buffer(other)
    ]


def two_heads(path: str) -> str:
    """The sentence for stored weights that config.json ties and that differ."""
    return (
        f"{path}: config.json ties the output layer to the input embeddings (tie_word_embeddings), but the weights hold two that "
        "differ, of which transformers would take both and vLLM one; set tie_word_embeddings to false if the output layer was "
        "trained by itself, or remove it from the weights"
    )


def stored_as(name: str, stored: Collection[str]) -> str:
    """The name in files of a tensor of the model, by the end that they have in common."""
    words = name.split(".")
    for start in range(len(words) - 1):
        found = [each for each in stored if each == ".".join(words[start:]) or each.endswith("." + ".".join(words[start:]))]
        if len(found) == 1:
            return found[0]
    return name


def equal(files: Sequence[pathlib.Path], one: str, other: str) -> bool:
    """Whether two stored tensors are equal. Reads both."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in {one, other}.intersection(opened.keys())}
    return len(found) < 2 or torch.equal(found[one], found[other])
