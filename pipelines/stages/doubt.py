"""Doubt: how likely it is that a pair's order is wrong, from what the reference left of it (`vidalign.learning.uncertainty`)."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from pipelines.stages.base import BEGUN, Stage
from vidalign import files
from vidalign.config.training import UncertaintyConfig
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
            "reference": self._reference(),
            "train.uncertainty": self.uncertainty.deciding(),
            "seed": self.seed,
        }

    def inputs_v1(self) -> dict[str, Any]:
        return {
            "reference": stable_hash(files.read_places(self.reference)),
            "uncertainty": self.uncertainty.recorded(),
            "seed": self.seed,
        }

    def _reference(self) -> str:
        """A hash of which files of the reference this is made from: relative to the run, or whole where an earlier run began so."""
        begun, whole = self.folder / BEGUN, stable_hash(files.read_places(self.reference))
        if begun.is_file() and isinstance(made := files.read_json(begun), dict) and made["inputs"].get("reference") == whole:
            return whole
        return stable_hash(files.read_json(self.reference))

    def run(self) -> dict[str, Any]:
        """Run in a Ray task, because it needs torch. Raises `DataError` if no pair is kept."""
        import ray

        made = ray.remote(estimate_doubt).remote(str(self.reference), list(self.pair_ids), self.uncertainty, self.seed)
        smoothing, facts = ray.get(made)
        if not smoothing:
            raise DataError(
                f"train.uncertainty dropped all {len(self.pair_ids)} pairs: the heads vote against every order; set "
                "train.uncertainty.drop_disagreeing to false, or look at the pairs"
            )
        files.write_json(self.path, smoothing)
        return facts


def estimate_doubt(
    kept: str, pair_ids: Sequence[str], config: UncertaintyConfig, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """{pair id: label smoothing} of the pairs that are kept, and facts for the manifest.

    `kept`: the JSON file of the files that `actors.reference.Reference` left.
    """
    import torch

    from vidalign.learning import uncertainty

    paths = files.read_places(pathlib.Path(kept))
    tensors = [read_tensors(paths[pair_id]) for pair_id in pair_ids]
    hidden = torch.stack([each["features"] for each in tensors])  # [P, 2, D]
    likelihood = torch.stack(
        [torch.stack([uncertainty.likelihood_features(each[side]) for side in ("chosen", "rejected")]) for each in tensors]
    )
    doubt = uncertainty.estimate(hidden, likelihood, num_passes=config.num_passes, dropout=config.dropout, seed=seed)
    smoothing = doubt.smoothing(config.max_smoothing)
    agreed = [at for at, vote in enumerate(doubt.vote.tolist()) if vote > 0.5 or not config.drop_disagreeing]
    drawn = agreed
    if config.sampled_share is not None and agreed:
        count = max(1, round(config.sampled_share * len(agreed)))
        drawn = [agreed[at] for at in uncertainty.draw(doubt.bald[agreed], count, seed=seed)]
    facts = {
        "label_noise": round(doubt.noise, 3),
        "mean_smoothing": round(float(smoothing[drawn].mean()), 4) if drawn else None,
        "dropped": {"voted_against": len(pair_ids) - len(agreed), "not_drawn": len(agreed) - len(drawn)},
    }
    return {pair_ids[at]: float(smoothing[at]) for at in drawn}, facts
