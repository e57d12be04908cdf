"""How the videos of a rollout decoded, in numbers."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

Decoded = Mapping[str, Mapping[str, str]]  # video uri ─► {video, frames_path, reason, message, backend}


def count_videos(decoded: Decoded) -> dict[str, Any]:
    """{total, decoded, quarantined {reason: n}, backends {what decoded them: n}} of distinct videos and images."""
    reasons = collections.Counter(row["reason"] for row in decoded.values() if not row["frames_path"])
    backends = collections.Counter(row.get("backend") or "not noted" for row in decoded.values() if row["frames_path"])
    return {
        "total": len(decoded),
        "decoded": len(decoded) - sum(reasons.values()),
        "quarantined": dict(reasons),
        "backends": dict(backends),
    }
