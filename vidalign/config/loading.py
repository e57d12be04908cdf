"""From YAML to a checked configuration, and back; errors name the key, the value and the way out.

`load_config("align.yaml", ["train.learning_rate=1e-6"])` returns a `RunConfig`; every unknown key, value out of range and
contradiction is a `ConfigError` that names the key. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import difflib
import pathlib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic
import yaml

from vidalign.config.recipes import RECIPES, section_of
from vidalign.config.run import RunConfig
from vidalign.config.section import Section
from vidalign.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Section)
RUN_CONFIG = "config.yaml"  # in a run's folder


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads an unquoted 1e-6 as a string (it wants 1.0e-6); people write 1e-6."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def load_config(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML), and check everything.

    A run's folder stands for its config.yaml, and the `run_dir` of that file is where the file is now, unless it is overridden.

    Raises:
        ConfigError: a missing or malformed file, an unknown key (with the nearest known one), an invalid value, a conflict.
    """
    path = pathlib.Path(path)
    if path.is_dir() and (path / RUN_CONFIG).is_file():
        path /= RUN_CONFIG
    if not path.is_file():
        raise ConfigError(f"no config file at {path}; start from one in configs/ or examples/shapes/align.yaml")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping of sections (model, data, ...), got {type(raw).__name__}")
    if (
        path.name == RUN_CONFIG and (path.parent / "rounds").is_dir()
    ):  # a run may have been moved or copied since it was written
        raw["run_dir"] = str(path.parent)
    return parse_config(raw, overrides, source=str(path))


def parse_config(raw: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Apply overrides to a mapping that is already parsed, and check it. Raises `ConfigError` naming the offending keys."""
    return parse_section(RunConfig, raw, overrides, source=source)


def parse_section(
    kind: type[SectionT], raw: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config"
) -> SectionT:
    """`parse_config` for a mapping that holds one section of the given kind instead of a whole run."""
    for override in overrides:
        _apply_override(raw, override)
    try:
        return kind.model_validate(_with_recipe_from_elsewhere(raw))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(_explain(item, kind) for item in error.errors())) from error


def _with_recipe_from_elsewhere(raw: dict[str, Any]) -> dict[str, Any]:
    """A recipe that is named as package.module:attribute brings its own section class, so its section is checked separately."""
    recipe = raw.get("recipe")
    name = recipe.get("name") if isinstance(recipe, dict) else None
    if not isinstance(name, str) or ":" not in name:
        return raw
    try:
        return {**raw, "recipe": section_of(name).model_validate(recipe)}
    except pydantic.ValidationError as error:
        items = [{**item, "loc": ("recipe", name, *item["loc"])} for item in error.errors()]
        raise ConfigError("; ".join(_explain(item, RunConfig) for item in items)) from error


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, from which `load_config` gives an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    dotted, sep, text = override.partition("=")
    if not sep or not dotted:
        raise ConfigError(f"an override must have the form section.key=value, got {override!r}")
    node = raw
    *parents, last = dotted.split(".")
    for name in parents:
        child = node.setdefault(name, {})
        if child is None:
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {name} holds a value, not a section")
        node = child
    try:
        node[last] = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {_one_line(error)}") from error


def _explain(item: Any, parsed: type[Section]) -> str:
    """One of pydantic's errors as a sentence. `parsed` is the section class that the whole mapping was parsed as."""
    location = [str(part) for part in item["loc"]]
    if item["type"] == "union_tag_invalid":
        return f"recipe.name={item['ctx']['tag']!r} is not a recipe; choose one of {', '.join(RECIPES)}"
    recipe: type[Section] | None = None
    if location[:1] == ["recipe"] and len(location) > 1:
        recipe = section_of(location.pop(1))  # its name is not part of the key
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(parsed, location[:-1], recipe)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*location[:-1], near[0]])}?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key {key}; {hint}"
    if item["type"] == "missing":
        return f"{key} is required"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={item['input']!r}: {message[:1].lower()}{message[1:]}"


def _known_keys(parsed: type[Section], location: list[str], recipe: type[Section] | None) -> list[str]:
    model: Any = parsed
    for name in location:
        annotation = model.model_fields[name].annotation
        options = [recipe, annotation, *getattr(annotation, "__args__", ())]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
        recipe = None
    return list(model.model_fields)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
