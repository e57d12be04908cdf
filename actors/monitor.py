"""Displacement during training: average log-likelihoods of fixed groups and of the probe's ground truths, compared with step 0."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import torch

from actors.rank import Rank
from vidalign import files
from vidalign.learning import displacement
from vidalign.learning.ahead import Batches
from vidalign.learning.batches import spread
from vidalign.learning.sequences import TrainingGroup
from vidalign.learning.value import accuracy_of, last_values
from vidalign.model.batch import Batch
from vidalign.model.logps import RowLogps

HELDOUT = "heldout.json"  # of a value model's training
KEPT_BYTES = 1 << 30
LOG_NAMES = {"chosen": "chosen_logp", "rejected": "rejected_logp", "truth": "truth_logp"}


class Monitor:
    """Measures the same groups repeatedly. `start` holds their values at step 0 and is stored in checkpoints."""

    def __init__(
        self,
        rank: Rank,
        source: Batches,
        *,
        pairs: Sequence[TrainingGroup],
        probe: Sequence[TrainingGroup] = (),
        size: int,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        """`pairs` are groups of a chosen and a rejected response, or all of a chosen one only. `size` is groups per forward pass.

        The batches are the same each time: up to `kept_bytes` of them are kept.
        """
        self._rank, self._source, self._size = rank, source, max(1, size)
        self._pairs, self._probe = pairs, probe
        self._kept: dict[tuple[str, int], Batch] = {}
        self._room = kept_bytes
        self._sides = [response.role for response in pairs[0].responses]
        self.start: dict[str, list[float]] = {}

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """The figures of `vidalign.learning.displacement`, by their names in logs. Collective."""
        self._rank.train(False)
        pairs = self._numbers("pairs", self._pairs, len(self._sides))
        truth = self._numbers("probe", self._probe, 1)
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
        if step == 0 and any(each.behaviour_logps for group in self._pairs for each in group.responses):
            figures["behaviour_gap"] = self._behaviour_gap(pairs)
        return {LOG_NAMES.get(name, name): value for name, value in figures.items()}

    def _behaviour_gap(self, averages: torch.Tensor) -> float:
        """Mean over the responses of |average log-likelihood - that under the policy that sampled them|: 0 if both compute alike."""
        sampled = [[sum(r.behaviour_logps) / len(r.behaviour_logps) for r in group.responses] for group in self._pairs]
        return float((averages - torch.tensor(sampled)).abs().mean())

    def _of_rows(self, rows: RowLogps) -> torch.Tensor:
        """The number [R] of each response that is measured."""
        return rows.avg

    def _numbers(self, name: str, groups: Sequence[TrainingGroup], width: int) -> torch.Tensor:
        """A number [groups, width] of each group's `width` responses, on the CPU; each rank measures a share."""
        table = torch.zeros((len(groups), width), device=self._rank.device)
        forwards = list(spread(len(groups), self._size, self._rank.index, self._rank.count))
        batches = self._batches(name, [[groups[index] for index in indices] for indices, _ in forwards])
        for (indices, inside), batch in zip(forwards, batches, strict=True):
            values = self._of_rows(self._rank.logps(batch)).view(width, len(indices)).T
            keep = torch.as_tensor(inside, device=table.device)
            table[torch.as_tensor(indices[inside], device=table.device)] = values[keep].float()
        self._rank.add_up(table)
        return table.cpu()

    def _batches(self, name: str, forwards: Sequence[Sequence[TrainingGroup]]) -> Iterator[Batch]:
        keys = [(name, number) for number in range(len(forwards))]
        fresh = self._source.batches([forward for key, forward in zip(keys, forwards, strict=True) if key not in self._kept])
        for key in keys:
            batch = self._kept.get(key)
            if batch is None:
                batch = next(fresh)
                if batch.num_bytes <= self._room:
                    self._kept[key] = batch
                    self._room -= batch.num_bytes
            yield batch


class ValueMonitor(Monitor):
    """The same of a value model: how it ranks pairs that it is not trained on, by what their responses are worth at their end."""

    def _of_rows(self, rows: RowLogps) -> torch.Tensor:
        return last_values(rows.logps, rows.mask)

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, float]:
        """Mean value of the chosen and the rejected responses, and the share of pairs that are ranked right. Collective."""
        table = self.values()
        chosen, rejected = table.T.tolist()
        return {
            "chosen_value": float(table[:, 0].mean()),
            "rejected_value": float(table[:, 1].mean()),
            "margin": float((table[:, 0] - table[:, 1]).mean()),
            "accuracy": accuracy_of(chosen, rejected),
        }

    @torch.no_grad()
    def values(self) -> torch.Tensor:
        """The last value of each side [pairs, 2], chosen first. Collective."""
        self._rank.train(False)
        return self._numbers("pairs", self._pairs, 2)

    def write(self, folder: pathlib.Path) -> None:
        """Write the values, {pair id: [chosen, rejected]}, to `HELDOUT` in a folder. Collective."""
        values = self.values().tolist()
        if self._rank.is_first:
            files.write_json(folder / HELDOUT, {pair.id: value for pair, value in zip(self._pairs, values, strict=True)})
