"""From YAML to a checked configuration, and back; errors name the key, the value and the way out.

`load_config("align.yaml", ["train.learning_rate=1e-6"])` returns a `RunConfig`; every unknown key, value out of range and
contradiction is a `ConfigError` that names the key. Relative paths are relative to the working directory.
"""

from __future__ import annotations

import copy
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic
import yaml

from vidalign import mirror
from vidalign.config.explaining import explain_all, sections_in
from vidalign.config.recipes import section_of
from vidalign.config.run import RunConfig
from vidalign.config.section import Section
from vidalign.config.yaml_file import read_mapping, read_value
from vidalign.errors import ConfigError
from vidalign.stored import shown

SectionT = TypeVar("SectionT", bound=Section)
RUN_CONFIG = "config.yaml"  # in a run's folder
# A plain text that YAML would cut at a comment; a command line has none.
COMMENTED = re.compile(r"(?s)[^\"'\[{|>&!*]*(?:^|\s)#")


def load_config(path: str | pathlib.Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply `section.key=value` overrides (values are YAML), and check everything.

    A run's folder or uri stands for its config.yaml, and the `run_dir` of that file is where the file is now, unless it is overridden.

    Raises:
        ConfigError: a missing or malformed file, an unknown key (with the nearest known one), an invalid value, a conflict.
    """
    path = pathlib.Path(mirror.opened(os.fspath(path)))
    if path.is_dir() and (path / RUN_CONFIG).is_file():
        path /= RUN_CONFIG
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give a YAML file, or the folder of a run, which holds a {RUN_CONFIG}")
    if not path.is_file():
        raise ConfigError(f"no config file at {path}; start from one in configs/ or examples/shapes/align.yaml")
    raw = read_mapping(path)
    if (
        path.name == RUN_CONFIG and (path.parent / "rounds").is_dir()
    ):  # it may have been moved or copied since it was written
        raw["run_dir"] = shown(path.parent)
    return parse_config(raw, overrides, source=str(path))


def parse_config(raw: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config") -> RunConfig:
    """Apply overrides to a mapping that is already parsed, and check it. Raises `ConfigError` naming the offending keys."""
    return parse_section(RunConfig, raw, overrides, source=source)


def parse_section(
    kind: type[SectionT], raw: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "config"
) -> SectionT:
    """`parse_config` for a mapping that holds one section of the given kind instead of a whole run."""
    raw = copy.deepcopy(raw)  # the caller's own stays as it is
    for override in overrides:
        _apply_override(raw, override)
    try:
        return kind.model_validate(_with_recipe_from_elsewhere(_without_empty(raw, kind)))
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {explain_all(error.errors(), kind)}") from error


def _without_empty(raw: dict[str, Any], kind: type[Section]) -> dict[str, Any]:
    """Without the sections that hold nothing, as where every line of one is a comment."""
    return {
        name: value
        for name, value in raw.items()
        if value is not None or name not in kind.model_fields or _takes_null(kind, name)
    }


def _takes_null(kind: type[Section], name: str) -> bool:
    return not sections_in(kind.model_fields[name].annotation)


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
        raise ConfigError(explain_all(items, RunConfig)) from error


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
        node[last] = text.strip() if COMMENTED.match(text) else read_value(text, dotted)
    except ConfigError as error:
        raise ConfigError(f"override {override[:80]!r}: the value {error}") from error
