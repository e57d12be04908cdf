"""Displacement during training: average log-likelihoods of fixed groups and of the probe's ground truths, compared with step 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actors.rank import Rank
from vidalign.learning import displacement
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.batches import spread
from vidalign.learning.sequences import TrainingGroup

LOG_NAMES = {"chosen": "chosen_logp", "rejected": "rejected_logp", "truth": "truth_logp"}


class Monitor:
    """Measures the same groups repeatedly. `start` holds their values at step 0 and is stored in checkpoints."""

    def __init__(
        self,
        rank: Rank,
        source: BatchSource,
        *,
        pairs: Sequence[TrainingGroup],
        probe: Sequence[TrainingGroup],
        size: int,
    ) -> None:
        """`pairs` are groups of a chosen and a rejected response, or all of a chosen one only. `size` is groups per forward pass."""
        self._rank, self._source, self._size = rank, source, max(1, size)
        self._pairs, self._probe = pairs, probe
        self._sides = [response.role for response in pairs[0].responses]
        self.start: dict[str, list[float]] = {}

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """The figures of `vidalign.learning.displacement`, by their names in logs. Collective."""
        self._rank.train(False)
        pairs, truth = self._averages(self._pairs, len(self._sides)), self._averages(self._probe, 1)
        now: dict[str, list[float]] = {side: pairs[:, column].tolist() for column, side in enumerate(self._sides)}
        now["truth"] = truth[:, 0].tolist()
        if step == 0:
            self.start = now
        if "rejected" in now:
            figures = displacement.displacement(
                chosen_start=self.start["chosen"],
                rejected_start=self.start["rejected"],
                chosen=now["chosen"],
                rejected=now["rejected"],
            )
        else:
            figures = displacement.side_displacement("chosen", self.start["chosen"], now["chosen"])
        if self._probe:
            figures |= displacement.side_displacement("truth", self.start["truth"], now["truth"])
        return {LOG_NAMES.get(name, name): value for name, value in figures.items()}

    def _averages(self, groups: Sequence[TrainingGroup], width: int) -> torch.Tensor:
        """Average log-likelihoods [groups, width] of each group's `width` responses, on the CPU; each rank measures a share."""
        table = torch.zeros((len(groups), width), device=self._rank.device)
        for indices, inside in spread(len(groups), self._size, self._rank.index, self._rank.count):
            batch = self._source.batch([groups[index] for index in indices], keep=True)
            values = self._rank.logps(batch).avg.view(width, len(indices)).T
            keep = torch.as_tensor(inside, device=table.device)
            table[torch.as_tensor(indices[inside], device=table.device)] = values[keep].float()
        self._rank.add_up(table)
        return table.cpu()
