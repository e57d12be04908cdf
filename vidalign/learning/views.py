"""What an objective sees of a forward pass over groups: one view for each kind of input that objectives consume.

    rows of a batch ─► view.policy ─► PairLogps ─► objective(policy, reference, **denominators)
    kept tensors    ─► view.reference ─►──────────┘

A view of whole groups reads the same rows and the same groups; it has the same methods and is added to `VIEWS`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from vidalign.errors import ConfigError
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.objectives.base import Objective
from vidalign.learning.sequences import Role, TrainingGroup
from vidalign.model.logps import PairLogps, RowLogps, pad_to_mask

SIDES: tuple[Role, Role] = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairView:
    """Groups of two as preference pairs.

    Attributes:
        kept: from a group's id to the reference's outputs for it, see `actors.reference.Reference`.
        doubt: by group id, the probability that a pair's order is wrong, as estimated by `train.uncertainty`; empty without it.
    """

    objective: Objective
    source: BatchSource
    kept: Callable[[str], Mapping[str, torch.Tensor]]
    doubt: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def sequences(self, group: TrainingGroup) -> TrainingGroup:
        """The group with only the responses that the objective needs a forward pass of."""
        return group if self.objective.needs_rejected else group.only("chosen")

    def reference_hidden(self, groups: Sequence[TrainingGroup]) -> torch.Tensor | None:
        """The reference's final hidden states [N, D] on the chosen responses, if the objective needs a KL to it."""
        if not self.objective.needs_kl:
            return None
        return torch.cat([self.kept(group.id)["hidden"] for group in groups])

    def policy(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> PairLogps:
        """The rows of a batch of these groups' `sequences`, with what else the objective needs."""
        device, doubt = rows.logps.device, None
        if self.doubt:
            doubt = torch.tensor([self.doubt[group.id] for group in groups], device=device)
        if self.objective.needs_phrases:
            ids = [each for response in self.source.phrases(list(map(self.sequences, groups))) for each in response]
            rows = dataclasses.replace(rows, phrases=pad_to_mask(torch.tensor(ids, device=device), rows.mask))
        pairs = PairLogps.from_rows(rows, num_pairs=len(groups), doubt=doubt)
        if not self.objective.takes_win_rates:
            return pairs
        won, lost = (
            torch.tensor(
                [math.nan if each.win_rate is None else each.win_rate for g in groups for each in g.only(side).responses],
                device=device,
            )
            for side in SIDES
        )
        return dataclasses.replace(pairs, chosen_win_rate=won, rejected_win_rate=lost)

    def reference(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> PairLogps | None:
        """The reference's log-probs of the same rows; None if the objective does not need them."""
        if not self.objective.needs_reference:
            return None
        kept = [self.kept(group.id) for group in groups]
        sides = [response.role for response in self.sequences(groups[0]).responses]
        flat = torch.cat([tensors[side] for side in sides for tensors in kept])
        reference = RowLogps(logps=pad_to_mask(flat.to(rows.logps.device), rows.mask), mask=rows.mask)
        return PairLogps.from_rows(reference, num_pairs=len(groups))

    def denominators(self, groups: Sequence[TrainingGroup]) -> dict[str, int]:
        """The denominators of the objective's means in a step on these groups, as its keyword arguments: totals of the step."""
        tokens = sum(len(self.source.tokens(response)) for group in groups for response in group.only("chosen").responses)
        return {"num_pairs": len(groups), "num_chosen_tokens": tokens}


VIEWS: dict[str, type[PairView]] = {"pairs": PairView}


def view_of(objective: Objective) -> type[PairView]:
    """The view that gives an objective what it consumes.

    Raises:
        ConfigError: there is no such view.
    """
    if objective.consumes not in VIEWS:
        raise ConfigError(
            f"objective.name={objective.name} consumes {objective.consumes}, but training can give an objective only "
            f"{', '.join(VIEWS)}; choose another objective"
        )
    return VIEWS[objective.consumes]
