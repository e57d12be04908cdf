"""Numbers of workers in a configuration: one number, or [fewest, most] where they come and go with the cluster."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic


def _numbers(value: Any) -> Any:
    numbers = value if isinstance(value, list | tuple) else [value]
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    if value is not None and (not whole or (numbers is value and len(numbers) != 2)):
        raise ValueError(f"must be a whole number, or two of them as [fewest, most], got {value!r}")
    return value


def _in_order(value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
    low, high = fewest(value), most(value)
    if low is not None and high is not None and not 1 <= low <= high:
        way_out = [max(1, min(low, high)), max(1, low, high)] if isinstance(value, tuple) else 1
        shown = list(value) if isinstance(value, tuple) else value
        raise ValueError(f"must be a whole number from 1 on, or [fewest, most], got {shown}; set it to {way_out}")
    return value


Count = Annotated[int | tuple[int, int], pydantic.BeforeValidator(_numbers), pydantic.AfterValidator(_in_order)]
AnyCount = Annotated[int | tuple[int, int] | None, pydantic.BeforeValidator(_numbers), pydantic.AfterValidator(_in_order)]


def fewest(value: int | tuple[int, int] | None) -> int | None:
    """With how many the work goes on; None where that is left open."""
    return value[0] if isinstance(value, tuple) else value


def most(value: int | tuple[int, int] | None) -> int | None:
    """How many there are where no node is missing; None where that is left open."""
    return value[1] if isinstance(value, tuple) else value
