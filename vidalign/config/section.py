"""What every section of a configuration has in common."""

from __future__ import annotations

import pydantic


class Section(pydantic.BaseModel):
    """Base of every section: unknown keys fail and values cannot change after loading."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
