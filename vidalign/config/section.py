"""What every section of a configuration has in common."""

from __future__ import annotations

from typing import Any, ClassVar

import pydantic


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys fail and values cannot change after loading.

    NEUTRAL names the options that do not change a result: how often something is logged, how many workers share the work,
    where something is cached. A finished stage stays valid when one of them changes. SILENT names options that are mentioned only
    where they are not at their defaults, so that what was made before they existed stays valid.
    """

    NEUTRAL: ClassVar[frozenset[str]] = frozenset()
    SILENT: ClassVar[frozenset[str]] = frozenset()

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def deciding(self) -> dict[str, Any]:
        """The options that decide a result, as JSON values, including those of nested sections."""
        fields = type(self).model_fields
        unsaid = {name for name in self.SILENT if getattr(self, name) == fields[name].default}
        row = self.model_dump(mode="json", exclude=set(self.NEUTRAL | unsaid))
        for name in row:
            inner = getattr(self, name, None)
            if isinstance(inner, Section):
                row[name] = inner.deciding()
        return row
