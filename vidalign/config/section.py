"""What every section of a configuration has in common."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Annotated, Any, ClassVar, TypeAlias, get_args

import pydantic


def _usable_path(path: str) -> str:
    """The path with ~ as the home folder it stands for: nothing after this module knows of ~."""
    if not path.strip():
        raise ValueError(f"must name something, got {path!r}")
    if len(os.fsencode(path)) > MAX_PATH or max(len(os.fsencode(part)) for part in path.split("/")) > MAX_NAME:
        raise ValueError(f"is longer than a path or a name in it may be, got {path[:60]}…")
    if not path.startswith("~"):
        return path
    try:
        return str(pathlib.Path(path).expanduser())
    except RuntimeError as error:
        raise ValueError(f"names the home folder of a user that this machine does not have, got {path!r}") from error


FIRST_VERSION = "0.1.0"
MAX_PATH, MAX_NAME = 4000, 255  # bytes, on the file systems of Linux
PathText: TypeAlias = Annotated[str, pydantic.AfterValidator(_usable_path)]


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys fail and values cannot change after loading.

    NEUTRAL names the options that do not change a result: how often something is logged, how many workers share the work,
    where something is cached. A finished stage stays valid when one of them changes.

    LATER names the options that are younger than the records of finished stages may be. One that has its default value is
    recorded as if it did not exist, so that what was finished before it existed stays valid.

    SINCE names the version of options that are younger than `FIRST_VERSION`. What an option means is the text below it.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset()
    LATER: ClassVar[frozenset[str]] = frozenset()
    SINCE: ClassVar[Mapping[str, str]] = {}

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Python takes true for 1, and pydantic with it; in lists and mappings too."""
        truths = [each for each in _values(value) if isinstance(each, bool)]
        if truths:
            kinds = set(_kinds(cls.model_fields[str(info.field_name)].annotation))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"must be a number, got {str(truths[0]).lower()}")
        return value

    def deciding(self) -> dict[str, Any]:
        """The options that decide a result, as JSON values, including those of nested sections."""
        return self._record(type(self).model_fields.keys() - self.NEUTRAL, Section.deciding)

    def recorded(self, *, include: Set[str] | None = None, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """All options, or those of `include`, without those of `exclude`, as JSON values in the form that records have."""
        return self._record((type(self).model_fields.keys() if include is None else include) - exclude, Section.recorded)

    def _record(self, names: Set[str], inside: Callable[[Section], dict[str, Any]]) -> dict[str, Any]:
        defaults = {name for name in self.LATER if getattr(self, name) == type(self).model_fields[name].get_default()}
        row = self.model_dump(mode="json", include=set(names - defaults))
        for name in row:
            inner = getattr(self, name)
            if isinstance(inner, Section):
                row[name] = inside(inner)
        return row


def _values(given: Any) -> Iterator[Any]:
    """What a list or mapping holds, at any depth; anything else itself."""
    if isinstance(given, Mapping):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from _values(each)
    else:
        yield given


def _kinds(annotation: Any) -> Iterator[type]:
    """The types that an annotation is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for each in get_args(annotation):
        yield from _kinds(each)
