"""How the videos of a rollout decoded: those with a clip, those without one and why, and both in numbers."""

from __future__ import annotations

import collections
import pathlib
from collections.abc import Mapping
from typing import Any

from pipelines import progress
from vidalign.errors import DataError
from vidalign.stored import shown
from vidalign.types import QuarantineRow

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


def sorted_out(decoded: Decoded) -> tuple[dict[str, str], list[QuarantineRow]]:
    """{video: its clip}, and the videos without one. Raises `DataError` when no video could be decoded."""
    frames = {video: row["frames_path"] for video, row in decoded.items() if row["frames_path"]}
    left_out = {video: row for video, row in decoded.items() if not row["frames_path"]}
    quarantine = [QuarantineRow(uri=uri, reason=row["reason"], message=row["message"]) for uri, row in left_out.items()]
    if not frames:
        raise DataError(
            f"none of the {len(decoded)} videos could be decoded; first reason: {quarantine[0].message}. "
            "Check data.video_root and the video files"
        )
    return frames, quarantine


def note_left_out(videos: Mapping[str, Any], table: pathlib.Path, round_index: int) -> None:
    """Say how many are in quarantine, if any are; `videos`: as `count_videos` gives them."""
    if count := sum(videos["quarantined"].values()):
        shares = f"{count:,} of {videos['total']:,} videos ({progress.counts(videos['quarantined'])})"
        progress.note(f"quarantine, round {round_index}: {shares}; why of each: {shown(table)}")
