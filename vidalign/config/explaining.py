"""What is wrong with a configuration, as sentences that name the key, the value and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

import pydantic

from vidalign.config.recipes import ELSEWHERE, RECIPES, section_of
from vidalign.config.section import Section

MAX_SHOWN = 5  # mistakes that one message names
# What other trainers call an option: its name there → its key here.
OTHER_NAMES = {
    "lr": "train.learning_rate",
    "epochs": "train.num_epochs",
    "num_train_epochs": "train.num_epochs",
    "lr_scheduler_type": "train.schedule",
    "per_device_train_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "bs": "train.batch_size",
    "lora_rank": "train.lora.rank",
    "lora_r": "train.lora.rank",
    "lora_alpha": "train.lora.alpha",
    "lora_dropout": "train.lora.dropout",
    "lora_target_modules": "train.lora.targets",
    "target_modules": "train.lora.targets",
    "save_steps": "train.checkpoint_every",
    "save_total_limit": "train.num_checkpoints_kept",
    "logging_steps": "train.log_every",
    "beta": "objective.params",
    "loss": "objective.name",
    "loss_type": "objective.name",
    "rlhf_type": "objective.name",
    "pref_loss": "objective.name",
    "pref_beta": "objective.params",
    "method": "recipe.name",
    "model_name_or_path": "model.path",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "max_length": "model.max_model_len",
    "cutoff_len": "model.max_model_len",
    "max_seq_len": "model.max_model_len",
    "dataset": "data.train",
    "dataset_name": "data.train",
    "val_dataset": "data.eval",
    "eval_dataset": "data.eval",
    "max_samples": "data.limit",
    "output_dir": "run_dir",
    "out": "run_dir",
    "nframes": "video.num_frames",
    "max_tokens": "recipe.max_new_tokens",
    "n": "recipe.num_candidates",
    "num_generations": "recipe.num_candidates",
    "tensor_parallel_size": "rollout.gpus_per_engine",
    "gpu_memory_utilization": "rollout.engine_args",
}


def explain_all(items: Sequence[Any], parsed: type[Section]) -> str:
    """The first of pydantic's errors, and how many more there are."""
    more = f"; and {len(items) - MAX_SHOWN:,} more" if len(items) > MAX_SHOWN else ""
    return "; ".join(explain(item, parsed) for item in items[:MAX_SHOWN]) + more


def explain(item: Any, parsed: type[Section]) -> str:
    """One of pydantic's errors as a sentence. `parsed` is the section class that the whole mapping was parsed as."""
    location = [str(part) for part in item["loc"]]
    if item["type"] == "union_tag_invalid":
        return f"recipe.name={item['ctx']['tag']!r} is not a recipe; choose one of {', '.join(RECIPES)}"
    recipe: type[Section] | None = None
    if location[:1] == ["recipe"] and len(location) > 1:
        name = location.pop(1)  # not part of the key
        recipe = section_of(name) if name != ELSEWHERE else None
    key = _written(location)
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}; {_hint(location, parsed, recipe)}"
    if item["type"] == "missing":
        return f"{key} is required"
    if item["type"] in ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found"):
        return f"{key}={_shown(item['input'])}: {_must_be_options(key, item['input'])}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={_shown(item['input'])}: {message[:1].lower()}{message[1:]}"


def _written(location: Sequence[str]) -> str:
    """A place in the configuration as its option is written: steps are a list in the place of `rounds`."""
    if len(location) > 1 and location[0] == "steps":
        return ".".join([f"rounds[{location[1]}]", *location[2:]])
    return ".".join(location)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _must_be_options(key: str, value: Any) -> str:
    if isinstance(value, str) and key in ("recipe", "objective"):
        return f"must hold options, of which the name is one; write {key}.name={value}, or in YAML {key}: {{name: {value}}}"
    return "must hold options as `name: value`, one a line; write them, or leave it out"


def find_keys(parsed: type[Section], name: str) -> list[str]:
    """The dotted keys that somebody may mean by `name`, which other trainers may use, or which lacks its section."""
    name = name.replace("-", "_")
    last = name.rpartition(".")[2].lower()
    known = list(all_keys(parsed))
    if name in known:
        return [name]
    if (ours := OTHER_NAMES.get(last)) in known:
        return [str(ours)]
    found = [key for key in known if key.rpartition(".")[2] == last]
    least = min((key.count(".") for key in found), default=0)
    return [key for key in found if key.count(".") == least]


def all_keys(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """The dotted keys of every option of a section and of those inside it; of all recipes."""
    seen = set()
    for name, field in kind.model_fields.items():
        for inner in (None, *sections_in(field.annotation)):
            keys = [f"{prefix}{name}"] if inner is None else all_keys(inner, f"{prefix}{name}.")
            for key in keys:
                if key not in seen:
                    seen.add(key)
                    yield key


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that an option of this type may hold."""
    return [model for model in _models_in(annotation) if issubclass(model, Section)]


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if get_origin(annotation) is None and isinstance(annotation, type):
        return [annotation] if issubclass(annotation, pydantic.BaseModel) else []
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _hint(location: Sequence[str], parsed: type[Section], recipe: type[Section] | None) -> str:
    known = _siblings(parsed, location[:-1], recipe)
    meant = find_keys(parsed, ".".join(location))
    near = [_written([*location[:-1], name]) for name in difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)]
    if recipe is not None:  # of another recipe, an option would be refused again
        meant = [key for key in meant if not key.startswith("recipe.")]
    if meant and OTHER_NAMES.get(location[-1].lower()) == meant[0]:
        return f"did you mean {meant[0]}?"
    if near:
        return f"did you mean {near[0]}?"
    if meant:
        return f"did you mean {' or '.join(meant[:3])}?"
    return f"known keys: {', '.join(known)}"


def _siblings(parsed: type[Section], location: Sequence[str], recipe: type[Section] | None) -> list[str]:
    model: type[pydantic.BaseModel] = parsed
    for name in location:
        if name not in model.model_fields:  # a place in a list, or a name of the user's in a mapping
            continue
        options = _models_in(model.model_fields[name].annotation)
        model = recipe if recipe is not None and model is parsed else options[0] if options else model
    return list(model.model_fields)
