"""Doubt: how likely it is that a pair's order is wrong, from features that the reference left (`vidalign.learning.uncertainty`)."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pipelines.stages.base import Stage
from vidalign import files
from vidalign.config.run import UncertaintyConfig
from vidalign.errors import DataError
from vidalign.model.tensor_cache import read_tensors
from vidalign.types import stable_hash


@dataclasses.dataclass(kw_only=True)
class DoubtStage(Stage):
    """doubt.json, {pair id: label smoothing} of the pairs that are kept. `reference`: what `reference_files` wrote."""

    name: ClassVar[str] = "doubt"

    folder: pathlib.Path
    uncertainty: UncertaintyConfig
    reference: pathlib.Path
    pair_ids: Sequence[str]
    seed: int
    earlier: Callable[[], Stage | None] | None = None

    @property
    def path(self) -> pathlib.Path:
        return self.folder / "doubt.json"

    def inputs(self) -> dict[str, Any]:
        return {
            "reference": stable_hash(files.read_json(self.reference)),
            "train.uncertainty": self.uncertainty.deciding(),
            "seed": self.seed,
        }

    def inputs_v1(self) -> dict[str, Any]:
        return {
            "reference": stable_hash(files.read_json(self.reference)),
            "uncertainty": self.uncertainty.recorded(),
            "seed": self.seed,
        }

    def run(self) -> dict[str, Any]:
        """Run in a Ray task, because it needs torch. Raises `DataError` if no pair is kept."""
        import ray

        made = ray.remote(estimate_doubt).remote(str(self.reference), list(self.pair_ids), self.uncertainty, self.seed)
        smoothing = ray.get(made)
        if not smoothing:
            raise DataError(
                f"train.uncertainty dropped all {len(self.pair_ids)} pairs: the heads vote against every order; set "
                "train.uncertainty.drop_disagreeing to false, or look at the pairs"
            )
        files.write_json(self.path, smoothing)
        return {}


def estimate_doubt(kept: str, pair_ids: Sequence[str], config: UncertaintyConfig, seed: int) -> dict[str, float]:
    """{pair id: label smoothing} from the features that `actors.reference.Reference` left; `kept`: its JSON file of files."""
    import torch

    from vidalign.learning import uncertainty

    paths = files.read_json(pathlib.Path(kept))
    means = torch.stack([read_tensors(paths[pair_id])["features"] for pair_id in pair_ids])  # [P, 2, D]
    doubt = uncertainty.estimate(means[:, 0], means[:, 1], num_passes=config.num_passes, dropout=config.dropout, seed=seed)
    smoothing = doubt.smoothing(config.max_smoothing).tolist()
    return {
        pair_id: value
        for pair_id, value, vote in zip(pair_ids, smoothing, doubt.vote.tolist(), strict=True)
        if vote > 0.5 or not config.drop_disagreeing
    }
