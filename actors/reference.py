"""Log-probs of pairs under a frozen reference policy, computed once under Ray Data before training starts.

The trainer then holds one model. Rows are kept on disk by the stage that calls this; see `pipelines/train.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidalign import files
from vidalign.config import ModelConfig
from vidalign.pair_data import PairSource
from vidalign.types import PreferencePair


class Reference:
    """Ray Data actor: a batch of pairs in, a batch of `vidalign.types.ReferenceRow` columns out."""

    def __init__(self, model: dict[str, Any], path: str, pairs: str, frames: str, plain_prompt: str, use_gpu: bool) -> None:
        import pathlib

        import torch

        from vidalign.policy import ResponseScorer, load_policy
        from vidalign.rendering import cached_processor

        config = ModelConfig(**model)
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._dtype = getattr(torch, config.dtype)
        self._scorer = ResponseScorer(load_policy(config, path)).to(self._device).eval()
        self._source = PairSource(
            pairs=files.read_table(pathlib.Path(pairs), PreferencePair),
            frames=files.read_json(pathlib.Path(frames)),
            processor=cached_processor(path, config.trust_remote_code),
            plain_prompt=plain_prompt,
            max_model_len=config.max_model_len,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Batch column: index of each pair in the pairs table."""
        import torch

        from vidalign.rendering import IGNORED

        indices = [int(index) for index in batch["index"]]
        rendered = self._source.batch(indices).to(self._device, self._dtype)
        with torch.no_grad():
            logps = self._scorer(rendered.inputs, rendered.labels).cpu()
        mask = (rendered.labels != IGNORED).cpu()
        rows = [logps[row][mask[row]].tolist() for row in range(2 * len(indices))]
        return {
            "pair_id": np.array([self._source.pairs[index].id for index in indices], dtype=object),
            "chosen": _ragged(rows[: len(indices)]),
            "rejected": _ragged(rows[len(indices) :]),
        }


def _ragged(rows: list[list[float]]) -> np.ndarray:
    column = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        column[index] = np.array(row, dtype=np.float32)
    return column
