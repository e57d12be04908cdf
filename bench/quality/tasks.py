"""The tasks that methods are compared on, by name."""

from __future__ import annotations

from bench.quality.events import BASES, EVENTS
from bench.quality.shapes import SHAPES

TASKS = {task.name: task for task in (SHAPES, EVENTS, *BASES.values())}
