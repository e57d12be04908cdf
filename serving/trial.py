"""Whether a version on trial fails or is slow, so that it is taken back without anybody looking."""

from __future__ import annotations

import collections
from typing import Any

from serving.versions import Bounds

WINDOW = 200  # requests of each version that are looked back upon
PERCENTILE = 0.9
SLACK_S = 0.05  # by which any request may be late, on a machine that does something else for a moment


class Outcomes:
    """How the latest requests of each version ended."""

    def __init__(self) -> None:
        self._seen: dict[str, collections.deque[tuple[bool, float]]] = {}

    def note(self, target: str, *, failed: bool, seconds: float) -> None:
        """One request is over. What a client did wrong, and one that left, is not noted."""
        self._seen.setdefault(target, collections.deque(maxlen=WINDOW)).append((failed, seconds))

    def clear(self) -> None:
        """Forget all, since two versions are to be compared from now on."""
        self._seen.clear()

    def summary(self, target: str) -> dict[str, Any]:
        """Requests, those that failed, and the 90th percentile of the others' seconds (None without any)."""
        seen = self._seen.get(target, ())
        answered = sorted(seconds for failed, seconds in seen if not failed)
        return {
            "requests": len(seen),
            "errors": sum(failed for failed, _ in seen),
            "p90_s": round(answered[min(len(answered) - 1, int(PERCENTILE * len(answered)))], 4) if answered else None,
        }

    def verdict(self, target: str, promoted: str, bounds: Bounds) -> str:
        """Why a version is to be taken back; "" where it is not."""
        found, other = self.summary(target), self.summary(promoted)
        if found["requests"] < bounds.min_requests:
            return ""
        share = found["errors"] / found["requests"]
        if share > bounds.max_errors:
            return (
                f"{found['errors']} of its last {found['requests']} requests failed ({share:.0%}), and the bound is "
                f"{bounds.max_errors:.0%}"
            )
        slow, usual = found["p90_s"], other["p90_s"]
        if (
            other["requests"] < bounds.min_requests
            or slow is None
            or not usual
            or slow <= bounds.max_slowdown * usual + SLACK_S
        ):
            return ""
        return (
            f"its requests take {slow:.3g} s (90th percentile) and those of the promoted version {usual:.3g} s, and the bound is "
            f"{bounds.max_slowdown:g} times as long"
        )
