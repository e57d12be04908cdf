"""What a frozen reference policy says of pairs, computed once under Ray Data before training starts: log-probs of all response
tokens and, for objectives with a full-vocabulary KL, the final hidden states of the chosen ones.

The trainer then holds one model. Rows are kept on disk by the stage that calls this; see `pipelines/train.py`.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from vidalign import files
from vidalign.config import ModelConfig
from vidalign.pair_data import PairSource
from vidalign.types import PreferencePair

if TYPE_CHECKING:
    import torch


class Reference:
    """Ray Data actor: a batch of pairs in, a batch of `vidalign.types.ReferenceRow` columns out."""

    def __init__(
        self,
        model: dict[str, Any],
        path: str,
        pairs: str,
        frames: str,
        plain_prompt: str,
        use_gpu: bool,
        hidden: str = "",
        features: str = "",
    ) -> None:
        """`hidden`, `features`: folders for the chosen side's hidden states and both sides' means, a file a pair; "" keeps none."""
        import torch

        from vidalign import shared_prefix
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
        self._shared = shared_prefix.is_supported(self._scorer.model)
        self._hidden = pathlib.Path(hidden) if hidden else None
        self._features = pathlib.Path(features) if features else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Batch column: index of each pair in the pairs table."""
        import torch

        from vidalign.rendering import IGNORED

        pairs = [self._source.pairs[int(index)] for index in batch["index"]]
        indices = [int(index) for index in batch["index"]]
        rendered = self._source.batch(indices, shared=self._shared).to(self._device, self._dtype)
        mask = rendered.labels != IGNORED
        with torch.inference_mode():
            hidden = self._scorer.hidden(rendered.inputs, rendered.labels, rendered.sources)
            logps = self._scorer.score(hidden, rendered.labels[mask]).cpu()
        lengths = mask.sum(-1).tolist()
        states = hidden.cpu().split(lengths)  # chosen rows come first
        for index, pair in enumerate(pairs):
            if self._hidden is not None:
                write_hidden(hidden_path(self._hidden, pair.id), states[index])
            if self._features is not None:
                means = torch.stack([side.float().mean(0) for side in (states[index], states[index + len(pairs)])])
                write_hidden(hidden_path(self._features, pair.id), means)
        rows = [row.numpy() for row in logps.split(lengths)]
        return {
            "pair_id": np.array([pair.id for pair in pairs], dtype=object),
            "chosen": _ragged(rows[: len(pairs)]),
            "rejected": _ragged(rows[len(pairs) :]),
        }


def hidden_path(folder: pathlib.Path, pair_id: str) -> pathlib.Path:
    """Where the reference's final hidden states [T, D] on a pair's chosen response are kept."""
    return folder / f"{pair_id}.safetensors"


def write_hidden(path: pathlib.Path, states: torch.Tensor) -> None:
    import safetensors.torch

    files.write_bytes_atomic(path, safetensors.torch.save({"hidden": states.contiguous()}))


def read_hidden(path: pathlib.Path) -> torch.Tensor:
    """[T, D] in the reference's dtype, T the chosen response's tokens, its end-of-turn token included."""
    import safetensors.torch

    return safetensors.torch.load(path.read_bytes())["hidden"]


def _ragged(rows: list[np.ndarray]) -> np.ndarray:
    column = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        column[index] = row
    return column
