"""One line of what `vidalign doctor` says."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the diagnosis. `needed` says that no run works without it. `fix` is empty if `ok`."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True
