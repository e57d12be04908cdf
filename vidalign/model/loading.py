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
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vidalign.errors import ModelError
from vidalign.model.folder import missing_package, read_headers, weight_files
from vidalign.model.weight_checks import check_finite, check_report, equal, stored_as, two_heads, untied

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


def load(path: str, dtype: torch.dtype, *, trust_remote_code: bool = False, **options: Any) -> nn.Module:
    """Load a video language model from safetensors, whole and finite.

    Args:
        options: of transformers' from_pretrained.

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
            **options,
        )
    check_report(path, model, report)
    if untied(model):
        raise ModelError(two_heads(path))
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
    for names in untied(model):  # both are stored, so they must be equal
        if not equal(weight_files(pathlib.Path(path)), *(stored_as(name, stored) for name in names)):
            raise ModelError(two_heads(path))
    model.tie_weights()
    return model


def _dtype(path: str, name: str, kind: str) -> torch.dtype:
    if kind not in DTYPES:
        raise ModelError(f"{path} holds {name} as {kind}, which is not read here; use a checkpoint in bfloat16 or float32")
    return DTYPES[kind]


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
