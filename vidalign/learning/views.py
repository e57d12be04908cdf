"""What an objective is given of a forward over groups: a view for each kind of thing that objectives consume.

    rows of a batch ─► view.policy ─► PairLogps ─► objective(policy, reference, **denominators)
    kept tensors    ─► view.reference ─►──────────┘

A view on whole groups reads the same rows and the same groups; it has the same methods, and is entered in `VIEWS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch

from vidalign.errors import ConfigError
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.objectives.base import Objective
from vidalign.learning.sequences import TrainingGroup
from vidalign.model.logps import PairLogps, RowLogps, pad_to_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairView:
    """Groups of two as preference pairs.

    Attributes:
        kept: from a group's id to what the reference made of it, see `actors.reference.Reference`.
        doubt: by group id, how probable it is that a pair's order is wrong; what `train.uncertainty` estimates. Empty without it.
    """

    objective: Objective
    source: BatchSource
    kept: Callable[[str], Mapping[str, torch.Tensor]]
    doubt: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def sequences(self, group: TrainingGroup) -> TrainingGroup:
        """The responses that the objective needs a forward of."""
        return group if self.objective.needs_rejected else group.only("chosen")

    def reference_hidden(self, groups: Sequence[TrainingGroup]) -> torch.Tensor | None:
        """[N, D] the reference's final hidden states on the chosen responses, where the objective needs a KL to it."""
        if not self.objective.needs_kl:
            return None
        return torch.cat([self.kept(group.id)["hidden"] for group in groups])

    def policy(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> PairLogps:
        """The rows of a batch of these groups' `sequences`, with what else the objective asks for."""
        device, doubt = rows.logps.device, None
        if self.doubt:
            doubt = torch.tensor([self.doubt[group.id] for group in groups], device=device)
        if self.objective.needs_phrases:
            ids = [each for response in self.source.phrases(list(map(self.sequences, groups))) for each in response]
            rows = dataclasses.replace(rows, phrases=pad_to_mask(torch.tensor(ids, device=device), rows.mask))
        return PairLogps.from_rows(rows, num_pairs=len(groups), doubt=doubt)

    def reference(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> PairLogps | None:
        """What the reference made of the same rows; None where the objective has no use for it."""
        if not self.objective.needs_reference:
            return None
        kept = [self.kept(group.id) for group in groups]
        sides = [response.role for response in self.sequences(groups[0]).responses]
        flat = torch.cat([tensors[side] for side in sides for tensors in kept])
        reference = RowLogps(logps=pad_to_mask(flat.to(rows.logps.device), rows.mask), mask=rows.mask)
        return PairLogps.from_rows(reference, num_pairs=len(groups))

    def denominators(self, groups: Sequence[TrainingGroup]) -> dict[str, int]:
        """What the objective's means are over in a step on these groups: its keyword arguments, as totals of the step."""
        tokens = sum(len(self.source.tokens(response)) for group in groups for response in group.only("chosen").responses)
        return {"num_pairs": len(groups), "num_chosen_tokens": tokens}


VIEWS: dict[str, type[PairView]] = {"pairs": PairView}


def view_of(objective: Objective) -> type[PairView]:
    """The view that shows an objective what it consumes.

    Raises:
        ConfigError: there is no such view.
    """
    if objective.consumes not in VIEWS:
        raise ConfigError(
            f"objective.name={objective.name} consumes {objective.consumes}, and training can show an objective only "
            f"{', '.join(VIEWS)}; choose another objective"
        )
    return VIEWS[objective.consumes]
