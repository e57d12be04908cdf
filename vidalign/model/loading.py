"""From a model folder to a model of transformers: every tensor has its place and every place its tensor, or it is refused.

    weight_files ─► from_pretrained ─► its loading report ─► check_report ─► check_finite     load: the weights themselves
    read_headers ─► the same on the meta device ────────► check_report                       outline: names and shapes alone

Both ways go through transformers' own renaming and conversion, so that checkpoints of older layouts are read as they are meant,
and a dry run says what loading would say. Without this, transformers fills a tensor that it misses with random numbers.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vidalign.errors import ModelError
from vidalign.model.folder import missing_package, read_headers, weight_files

NAMED = 3  # tensors that a message names
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_config(path: str, *, trust_remote_code: bool = False) -> Any:
    """The folder's config.json as transformers reads it, with the defaults of what it leaves out. Raises `ModelError`."""
    from transformers import AutoConfig

    with explained(path):
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)


def trainable_class(path: str, config: Any) -> type[Any]:
    """The class of transformers that training loads.

    Raises:
        ModelError: this architecture is none of those that take images or videos and text and answer with text.
    """
    from transformers import AutoModelForImageTextToText

    own = (getattr(config, "auto_map", None) or {}).get("AutoModelForImageTextToText")
    if own:
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        with explained(path):
            return get_class_from_dynamic_module(own, path)
    try:
        found = AutoModelForImageTextToText._model_mapping[type(config)]
    except KeyError:
        raise ModelError(
            f"{path} is a {config.model_type} model, which transformers does not load as a model from videos and text to text "
            "(AutoModelForImageTextToText), so that it cannot be trained; use a model of another family, for example Qwen2.5-VL, "
            "Qwen3-VL or LLaVA-OneVision"
        ) from None
    return found[0] if isinstance(found, tuple | list) else found


def load(path: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> nn.Module:
    """Load a video language model from safetensors, whole and finite.

    Raises:
        ModelError: the folder is missing or incomplete, fits no architecture, or its tensors are not those of the architecture.
    """
    files = weight_files(pathlib.Path(path))
    read_headers(files)
    config = read_config(path, trust_remote_code=trust_remote_code)
    made = trainable_class(path, config)
    with explained(path), _quiet():
        model, report = made.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report
        )
    check_report(path, model, report)
    if _tied(model, apart=True):
        raise ModelError(_two_heads(path))
    check_finite(path, dict(model.named_parameters()))
    return model


def outline(path: str, *, trust_remote_code: bool = False, dtype: str = "float32", weights: bool = True) -> nn.Module:
    """The model of a folder on the meta device: its modules and parameters by name and shape, without their numbers.

    Args:
        weights: check the headers of the folder's weights as `load` would check the weights.

    Raises:
        ModelError: as for `load`, except that numbers which are not finite are not seen.
    """
    config = read_config(path, trust_remote_code=trust_remote_code)
    made = trainable_class(path, config)
    if not weights:
        with explained(path), torch.device("meta"):
            return made._from_config(config, dtype=getattr(torch, dtype))
    stored = {
        name: torch.empty(shape, dtype=_dtype(path, name, kind), device="meta")
        for name, (kind, shape) in read_headers(weight_files(pathlib.Path(path))).items()
    }
    with explained(path), _quiet():
        model, report = made.from_pretrained(
            None,
            config=config,
            state_dict=stored,
            dtype=getattr(torch, dtype),
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_report(path, model, report)
    for names in _tied(model, apart=True):  # both are stored, so they must be equal
        if not _equal(weight_files(pathlib.Path(path)), *(_stored_as(name, stored) for name in names)):
            raise ModelError(_two_heads(path))
    model.tie_weights()
    return model


def _tied(model: Any, *, apart: bool) -> list[tuple[str, str]]:
    """Names of the parameters that config.json ties and that are (or, if `apart`, are not) one and the same."""
    wanted = model.get_expanded_tied_weights_keys(all_submodels=True)
    return [
        (one, other)
        for one, other in wanted.items()
        if (model.get_parameter_or_buffer(one) is not model.get_parameter_or_buffer(other)) == apart
    ]


def _two_heads(path: str) -> str:
    return (
        f"{path}: config.json ties the output layer to the input embeddings (tie_word_embeddings), but the weights hold two that "
        "differ, of which transformers would take both and vLLM one; set tie_word_embeddings to false if the output layer was "
        "trained by itself, or remove it from the weights"
    )


def _stored_as(name: str, stored: Collection[str]) -> str:
    """The name in files of a tensor of the model, by the end that they have in common."""
    words = name.split(".")
    for start in range(len(words) - 1):
        found = [each for each in stored if each == ".".join(words[start:]) or each.endswith("." + ".".join(words[start:]))]
        if len(found) == 1:
            return found[0]
    return name


def _equal(files: Sequence[pathlib.Path], one: str, other: str) -> bool:
    """Whether two stored tensors are equal. Reads both."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in {one, other}.intersection(opened.keys())}
    return len(found) < 2 or torch.equal(found[one], found[other])


def _dtype(path: str, name: str, kind: str) -> torch.dtype:
    if kind not in DTYPES:
        raise ModelError(f"{path} holds {name} as {kind}, which is not read here; use a checkpoint in bfloat16 or float32")
    return DTYPES[kind]


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
    """Raise `ModelError` for weights that are NaN or infinite. Reads each once: 0.1 s a GB and core."""
    bad = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            low, high = torch.aminmax(tensor.detach().float() if tensor.dtype.itemsize == 1 else tensor.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                bad.append(name)
    if bad:
        raise ModelError(
            f"{path} holds numbers that are NaN or infinite in {_some(bad)}; the training that wrote it went wrong, or the file is "
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


@contextlib.contextmanager
def explained(path: str) -> Iterator[None]:
    """What transformers raises for a folder that it cannot read, as a `ModelError` of one sentence."""
    try:
        yield
    except ImportError as error:
        raise ModelError(missing_package(path, error)) from error
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(
            f"{path} cannot be loaded as a video language model: {' '.join(str(error).split())[:400]}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the table that transformers logs and its progress bar: `check_report` says it in a sentence."""
    from transformers.utils import logging as theirs

    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()
