"""What every section of a configuration has in common."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any, ClassVar

import pydantic


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys fail and values cannot change after loading.

    NEUTRAL names the options that do not change a result: how often something is logged, how many workers share the work,
    where something is cached. A finished stage stays valid when one of them changes.

    LATER names the options that are younger than the records of finished stages may be. One that has its default value is
    recorded as if it did not exist, so that what was finished before it existed stays valid.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset()
    LATER: ClassVar[frozenset[str]] = frozenset()

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

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
