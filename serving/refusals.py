"""The message with which the endpoint refuses a video, and how a client reads it back."""

from __future__ import annotations

import re

from vidalign.errors import QUARANTINE_REASONS, VideoError

_UNUSABLE = re.compile(r"video cannot be used \((\w+)\): (.*)", re.DOTALL)


def unusable_message(error: VideoError) -> str:
    """The message with which the endpoint refuses a video; HTTP clients get it in a 400 response."""
    return f"video cannot be used ({error.reason}): {error.message}"


def unusable_video(message: str) -> VideoError | None:
    """The error that `unusable_message` wrote into an endpoint's error message; None if the message says something else."""
    found = _UNUSABLE.search(message)
    return VideoError(found[1], found[2]) if found and found[1] in QUARANTINE_REASONS else None
