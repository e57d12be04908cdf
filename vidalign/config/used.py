"""Options that depend on another one: set where nothing would use them, they are refused."""

from __future__ import annotations

from collections.abc import Iterable

from vidalign.config.section import Section


def check_used(section: Section, *needs: tuple[bool, Iterable[str], str]) -> None:
    """Raises `ValueError` for an option that is not at its default where nothing uses it.

    Args:
        needs: (whether they are used, names of options, what uses them).
    """
    fields = type(section).model_fields
    for is_used, names, why in needs:
        for name in names:
            if not is_used and getattr(section, name) != fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} is set but nothing uses it: it is for {why}; set that, or leave {name} out")
