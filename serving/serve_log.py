"""Serve's log of a replica, which vLLM closes when it sets up its own, by `logging.config.dictConfig`: that closes every handler.

A controller that takes the place of one that died asks each replica where its log is, and stops those that cannot say.
"""

from __future__ import annotations

import logging
import logging.handlers

NAME = "ray.serve"


def keep() -> None:
    """Let Serve's handlers of this process survive that; those that have been closed already go, as they write nothing any more."""
    logger = logging.getLogger(NAME)
    for handler in list(logger.handlers):
        if isinstance(handler, logging.handlers.MemoryHandler):
            if handler.target is None:
                logger.removeHandler(handler)
            else:
                handler.close = handler.flush  # type: ignore[method-assign]  # its file opens again at the next line
