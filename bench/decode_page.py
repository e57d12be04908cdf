"""The part of docs/performance.md that bench/decode.py writes."""

from __future__ import annotations

import statistics
from typing import Any

from bench.turns import Ratio, speedup

WORDS = {
    "decord": "decord",
    "decord2": "decord2",
    "pyav_in_order": "PyAV, in order",
    "pyav_seek": "PyAV, seeking",
    "opencv": "OpenCV, seeking",
    "opencv_in_order": "OpenCV, in order",
    "torchcodec": "torchcodec",
}


def page(found: dict[str, Any]) -> str:
    sections = [_head(found), _loops(found), _cache(found), _snap(found), _memory(found), _ray(found), _goals(found)]
    return "## Decode\n\n" + "\n".join(section for section in sections if section)
