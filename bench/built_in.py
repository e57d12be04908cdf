"""The built-in model and data, as the scripts of this folder use them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from vidalign.config.run import ModelConfig
from vidalign.types import FrameSpec

MODEL = ModelConfig(path="examples/shapes/model", dtype="float32", max_model_len=512)
SPEC = FrameSpec(num_frames=8, height=56, width=56)
MAX_NEW_TOKENS = 24


def make_run(folder: pathlib.Path, num_questions: Mapping[str, int], **sections: Any) -> dict[str, Any]:
    """Make data with so many questions a split, and the configuration of a run on them, as a YAML file would hold it.

    Args:
        folder: its `data` gets the data, its `run` is the run's folder.
        sections: of the configuration; they replace those made here.
    """
    from examples.shapes.make_videos import make

    make(folder / "data", dict(num_questions), 0)
    return {
        "run_dir": str(folder / "run"),
        "model": MODEL.model_dump(mode="json"),
        "data": {split: str(folder / "data" / f"{split}.jsonl") for split in num_questions},
        "video": {"num_frames": SPEC.num_frames, "height": SPEC.height, "width": SPEC.width},
        "cluster": {"address": "local"},
        **sections,
    }
