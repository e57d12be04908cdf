"""Looks things up by name: a name from a table, or "package.module:attribute" for what is defined outside this project."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any, TypeVar

from vidalign.errors import ConfigError

T = TypeVar("T")


def resolve(name: str, table: Mapping[str, T], *, what: str) -> T:
    """The entry of `table` called `name`, or the attribute that "package.module:attribute" names, imported.

    The type of such an attribute is not checked here.

    Args:
        what: what messages call the thing, such as "format" or "objective.name".

    Raises:
        ConfigError: an unknown name (the message suggests the nearest known one, or else lists them all); a module or an
            attribute that does not exist, or a module that cannot import what it needs.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return _imported(name, what)
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(table)}, or package.module:attribute"
    raise ConfigError(f"unknown {what} {name!r}; {hint}")


def _imported(name: str, what: str) -> Any:
    path, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in [*path.split("."), attribute]):
        raise ConfigError(
            f"{what} {name!r} does not have the form package.module:attribute; write it like my_package.my_module:name"
        )
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{path}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{what} {name!r}: there is no module {error.name}; install its package, or put its folder on PYTHONPATH"
            ) from error
        raise ConfigError(f"{what} {name!r}: importing {path} failed ({error}); install what it needs") from error
    except ImportError as error:
        raise ConfigError(f"{what} {name!r}: importing {path} failed ({error}); correct its imports") from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1, cutoff=0.5)
        hint = f"did you mean {path}:{near[0]}?" if near else f"use a name that {module.__file__ or path} defines"
        raise ConfigError(f"{what} {name!r}: module {path} has no attribute {attribute}; {hint}")
    return getattr(module, attribute)
