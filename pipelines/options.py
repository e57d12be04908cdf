"""`vidalign options [KEY]`: what every option means, read from the sections of the configuration; `--markdown` is docs/options.md."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import pydantic
from pydantic_core import PydanticUndefined

from vidalign.config.explaining import find_keys, sections_in
from vidalign.config.recipes import RECIPES
from vidalign.config.run import RunConfig
from vidalign.config.section import FIRST_VERSION, Section
from vidalign.errors import ConfigError

UNITS = {  # end of an option's name → its unit
    **{
        "_s": "s",
        "_minutes": "min",
        "_per_minute": "1/min",
        "_gib": "GiB",
        "_mb": "MB",
        "fps": "frames/s",
        "_chars": "characters",
    },
    **dict.fromkeys(("_tokens", "max_model_len", "tokens_per_micro_batch"), "tokens"),
    **dict.fromkeys(("_pixels", "_pixels_decoded", "height", "width", "_sigma"), "pixels"),
    "_frames": "frames",
}
PAGE = """\
# Options

Written by `vidalign options --markdown > docs/options.md` from the texts beside the options in `vidalign/config/`.
`vidalign options train` shows a section in the terminal, `vidalign options lr` finds an option by another trainer's name.

An option is written in YAML below its section, or on the command line as `section.key=value`. "Made again": whether a finished
stage refuses a change of this option, because its result would be another. Options without a default must be set.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option as it is shown."""

    key: str
    kind: str
    default: str
    unit: str
    since: str
    decides: bool
    text: str


def add_parser(commands: Any) -> None:
    """Add the command to the parsers of `vidalign`."""
    text = "say what options mean, with their values, defaults and units"
    command = commands.add_parser("options", help=text, description=text)
    command.add_argument(
        "key", nargs="?", help="an option or a section, such as train.learning_rate or train (default: all)"
    )
    command.add_argument("--markdown", action="store_true", help="as the page docs/options.md")
    command.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.markdown:
        if arguments.key:
            raise ConfigError("--markdown is the whole page; leave the key out")
        print(page(), end="")
        return 0
    for option in wanted(arguments.key):
        facts = [option.kind, f"default {option.default}" if option.default else "required", option.unit]
        print(f"{option.key}  ({', '.join(filter(None, facts))})\n    {option.text}")
    return 0


def wanted(key: str | None) -> list[Option]:
    """The options that a key means: all, those of a section, one. Raises `ConfigError` for one that there is not."""
    every = [option for _, options in chapters() for option in options]
    if not key:
        return every
    for name in (key, *find_keys(RunConfig, key)):
        found = [option for option in every if option.key == name or option.key.startswith(f"{name}.")]
        if found:
            return list({(option.key, option.text): option for option in found}.values())
    raise ConfigError(f"there is no option {key}; `vidalign options` shows all")


def chapters() -> Iterator[tuple[str, list[Option]]]:
    """(heading, options) of every section, the recipes one by one."""
    yield "run", list(_options(RunConfig, "", inside=False))
    for name, field in RunConfig.model_fields.items():
        if name == "recipe":
            for recipe, section in RECIPES.items():
                yield f"recipe: {recipe}", list(_options(section, "recipe."))
        else:
            for kind in sections_in(field.annotation):
                yield name, list(_options(kind, f"{name}."))


def page() -> str:
    """docs/options.md."""
    parts = [PAGE]
    for heading, options in chapters():
        rows = [_row(option) for option in options]
        table = [
            "| option | values | default | unit | made again | since | what it is |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
        parts.append(f"\n## {heading}\n\n" + "\n".join(table) + "\n")
    return "".join(parts)


def _row(option: Option) -> str:
    default, again = option.default or "none, required", "yes" if option.decides else "no"
    cells = (f"`{option.key}`", option.kind, default, option.unit, again, option.since, option.text)
    return f"| {' | '.join(map(_cell, cells))} |"


def _options(kind: type[Section], prefix: str, *, inside: bool = True) -> Iterator[Option]:
    """The options of a section, and those of the sections in it."""
    for name, field in kind.model_fields.items():
        inner = sections_in(field.annotation)
        if inner and not inside:
            continue
        yield Option(
            key=f"{prefix}{name}",
            kind="options, or null" if inner and _optional(field.annotation) else "options" if inner else values(field),
            default=_default(field, inner),
            unit=next((unit for end, unit in UNITS.items() if name.endswith(end)), ""),
            since=kind.SINCE.get(name, FIRST_VERSION),
            decides=name not in kind.NEUTRAL,
            text=text_of(kind, name),
        )
        for section in inner:
            yield from _options(section, f"{prefix}{name}.")


def values(field: Any) -> str:
    """What an option may be, in words."""
    found = _words(field.annotation)
    limits = [
        f"{sign} {getattr(limit, attribute):g}"
        for limit in field.metadata
        for attribute, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(limit, attribute, None) is not None
    ]
    return " ".join([found, *limits])


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        kinds = [_words(each) for each in arguments if each is not type(None)]
        return " or ".join([*kinds, *(["null"] if type(None) in arguments else [])])
    if origin is tuple:
        return "list" if Ellipsis in arguments else "[" + ", ".join(map(_words, arguments)) + "]"
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}
    return names.get(origin or annotation, str(getattr(annotation, "__name__", annotation)))


def _default(field: Any, inner: Sequence[Any]) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if inner:
        return "null" if value is None else "its own"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        text = " ".join(value.split())
        return text if len(text) <= 60 else f"{text[:60]}…"
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


def text_of(kind: type[pydantic.BaseModel], name: str) -> str:
    """The text below a field, in its class or the nearest above that has the field. "" where there is none."""
    for each in kind.__mro__:
        if issubclass(each, Section) and name in _texts(each.__module__).get(each.__name__, {}):
            return _texts(each.__module__)[each.__name__][name]
    return ""


@functools.cache
def _texts(module: str) -> dict[str, dict[str, str]]:
    """Class → field → the text below it, of a module."""
    found: dict[str, dict[str, str]] = {}
    for kind in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if not isinstance(kind, ast.ClassDef):
            continue
        for field, below in zip(kind.body, kind.body[1:], strict=False):
            is_text = (
                isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
            )
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text:
                found.setdefault(kind.name, {})[field.target.id] = " ".join(below.value.value.split())  # type: ignore[attr-defined]
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
