"""How often an engine's process died while the engine loaded, counted where the next process finds it.

An engine loads in a thread, beside the decoding of the first videos, so its actor counts as started. Ray Data starts such an actor
again and again, as long as its constructor returns.
"""

from __future__ import annotations

import contextlib
import pathlib

from vidalign import files
from vidalign.errors import DataError, ModelError

MAX_STARTS = 3


class EngineStarts:
    """The starts of one actor: `actor` is its id, which it keeps when its process is started again."""

    def __init__(self, parts: pathlib.Path, actor: str) -> None:
        self._path = parts / f".starts-{actor}"

    def begin(self) -> None:
        """Count a start. Raises `ModelError` where the last `MAX_STARTS` have all begun and not ended."""
        begun = 0
        with contextlib.suppress(DataError):
            begun = int(files.read_json(self._path))
        if begun >= MAX_STARTS:
            self.done()
            raise ModelError(
                f"the engine's process died {begun} times while it loaded the model, most likely for want of memory; see the end of "
                "its log (worker-*.err in /tmp/ray/session_latest/logs on its node), give the node more memory or lower "
                "rollout.num_engines, and run the same command again: it continues"
            )
        files.write_json(self._path, begun + 1)

    @staticmethod
    def forget(parts: pathlib.Path) -> None:
        """Remove what actors of an earlier command left behind."""
        for path in parts.glob(".starts-*"):
            path.unlink(missing_ok=True)

    def done(self) -> None:
        """The engine has loaded, or failed to in words."""
        self._path.unlink(missing_ok=True)
