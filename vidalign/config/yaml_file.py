"""YAML as configurations have it: one mapping in UTF-8, every key once, and only values that JSON has too."""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from vidalign.errors import ConfigError

MAX_DEPTH = 20
MAX_VALUES = 100_000  # an alias of an alias of an alias … is short to write and long to read
MAX_INT = 2**63


class _TwiceError(yaml.YAMLError):
    """A key stands twice in one mapping; YAML itself forbids it, and PyYAML takes the last."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads an unquoted 1e-6 as a string (it wants 1.0e-6); people write 1e-6."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (first := lines.get((key.tag, key.value))) is not None:
                where = f"in lines {first} and {line}" if first != line else f"in line {line}"
                raise _TwiceError(f"the key {key.value} stands twice in one section, {where}; keep one")
            lines[key.tag, key.value] = line
        return node


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """An integer or a float, unless YAML 1.1 takes it for another than people do: 010 for 8 and 1:30 for 90."""
    text = node.value.replace("_", "").lstrip("+-")
    construct = loader.construct_yaml_float if node.tag.endswith("float") else loader.construct_yaml_int
    value = construct(node)
    if re.fullmatch(r"0\d+", text) or ":" in text:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"{node.value} is read as {value:g}; write that, or what is meant, in quotes if it is a text",
            node.start_mark,
        )
    return value


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_mapping(path: pathlib.Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: the file is no text in UTF-8, no YAML, or holds something else than one mapping of plain values.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
        line = error.object[: error.start].count(b"\n") + 1
        where = "" if kind == "UTF-16" else f" (line {line} has the byte {error.object[error.start]:#04x})"
        raise ConfigError(f"{path} is not text in UTF-8 but in {kind}{where}; save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a YAML file") from error
    try:
        raw = read_value(text)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from error
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else type(raw).__name__
        raise ConfigError(f"{path} must hold a mapping of sections (model, data, ...), got {what}")
    return raw


def read_value(text: str, key: str = "") -> Any:
    """The value that a YAML text holds, as JSON values that share nothing. `key`: the option that it is of.

    Raises:
        ConfigError: with the rest of a sentence about the text.
    """
    try:
        return _plain(yaml.load(text, _Loader), key)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"is not valid YAML: {where}{_one_line(error.problem or error.context or error)}") from error
    except RecursionError as error:
        raise ConfigError(f"is not a configuration: it is nested deeper than {MAX_DEPTH} levels") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"is not valid YAML: {_one_line(error)}") from error


def _plain(value: Any, key: str) -> Any:
    """A copy in which no two places share a mapping, as two aliases of one anchor would. Raises `ConfigError`."""
    left = MAX_VALUES

    def copy(value: Any, place: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH or left < 0:
            limit = f"deeper than {MAX_DEPTH} levels" if depth > MAX_DEPTH else f"to more than {MAX_VALUES:,} values"
            raise ConfigError(f"is not a configuration: it is nested {limit}")
        if isinstance(value, Mapping):
            return {_key(key, place): copy(item, f"{place}.{key}".strip("."), depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [copy(item, place, depth + 1) for item in value]
        _check_scalar(value, place)
        return value

    return copy(value, key, 0)


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise ConfigError(
            f"has a key that is no text: {key!r}{f' in {place}' if place else ''}; put it in quotes, or correct it"
        )
    _check_scalar(key, place)
    return key


def _check_scalar(value: Any, place: str) -> None:
    shown = f"{place}={str(value)[:80]!r}" if place else f"value {str(value)[:80]!r}"
    if isinstance(value, str):
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in value):
            raise ConfigError(f"has {shown} with characters that no text or path may have; correct it")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(
                f"has {place or 'value'}={value}, which must be a finite number; write one, or null where it may be"
            )
    elif isinstance(value, int):
        if abs(value) >= MAX_INT:
            raise ConfigError(f"has {place or 'a value'} with a number of {value.bit_length()} bits; write one below 2^63")
    elif value is not None:
        raise ConfigError(f"has {shown}, which YAML reads as a {type(value).__name__}; put it in quotes")


def _one_line(error: Any) -> str:
    return " ".join(str(error).split())
