"""What an objective sees of a forward pass over groups: one view for each kind of input that objectives consume.

    rows of a batch ─► view.policy ─► PairLogps or GroupLogps ─► objective(policy, reference, **denominators)
    kept tensors    ─► view.reference ─►────────────────────────┘

Another view reads the same rows and the same groups; it has the same methods and is added to `VIEWS`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeAlias

import torch

from vidalign.errors import ConfigError
from vidalign.learning.batch_source import BatchSource
from vidalign.learning.objectives.base import AnyObjective, Objective
from vidalign.learning.objectives.groups import GroupLogps, GroupObjective
from vidalign.learning.objectives.value import Value
from vidalign.learning.sequences import Role, TrainingGroup, TrainingResponse
from vidalign.learning.value import ValueRows
from vidalign.model.logps import PairLogps, RowLogps, pad_to_mask

SIDES: tuple[Role, Role] = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairView:
    """Groups of two as preference pairs.

    Attributes:
        kept: from a group's id to the reference's outputs for it, see `actors.reference.Reference`.
        doubt: by group id, the probability that a pair's order is wrong, as estimated by `train.uncertainty`; empty without it.
    """

    takes: ClassVar[type[AnyObjective]] = Objective

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WholeView:
    """What views on groups share all of whose responses are learned from. Attributes: see `PairView`."""

    source: BatchSource
    kept: Callable[[str], Mapping[str, torch.Tensor]]
    doubt: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def sequences(self, group: TrainingGroup) -> TrainingGroup:
        """The group: all of its responses need a forward pass."""
        return group

    def reference_hidden(self, groups: Sequence[TrainingGroup]) -> torch.Tensor | None:
        """None: only objectives on pairs need a KL over the whole vocabulary."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupView(_WholeView):
    """Groups of a policy's own responses with advantages, all of the same number of responses. Attributes: see `PairView`."""

    takes: ClassVar[type[AnyObjective]] = GroupObjective

    objective: GroupObjective

    def policy(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> GroupLogps:
        """The rows of a batch of these groups, with behaviour log-probs and advantages; responses of weight 0 are masked."""
        device = rows.logps.device
        members = by_rows(groups)
        behaviour = torch.tensor([value for each in members for value in each.behaviour_logps], device=device)
        return GroupLogps(
            logps=rows.logps,
            mask=rows.mask & torch.tensor([each.weight > 0 for each in members], device=device)[:, None],
            behaviour=pad_to_mask(behaviour, rows.mask),
            advantages=self._advantages(members, rows.mask),
        )

    def _advantages(self, members: Sequence[TrainingResponse], mask: torch.Tensor) -> torch.Tensor:
        """One for each response [R], or for each token [R, T]."""
        if not self.objective.needs_values:
            return torch.tensor([each.advantage for each in members], device=mask.device)
        flat = torch.tensor([value for each in members for value in each.token_advantages], device=mask.device)
        return pad_to_mask(flat, mask)

    def reference(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> torch.Tensor | None:
        """The reference's log-probs [R, T] of the same rows; None if the objective does not need them."""
        if not self.objective.uses_reference:
            return None
        kept = [self.kept(group.id) for group in groups]
        flat = torch.cat([tensors[name] for name in groups[0].names for tensors in kept])
        return pad_to_mask(flat.to(rows.logps.device), rows.mask)

    def denominators(self, groups: Sequence[TrainingGroup]) -> dict[str, int]:
        """The denominators of a step on these groups, as the objective's keyword arguments: totals of the step."""
        learned = [each for group in groups for each in group.responses if each.weight > 0]
        return {"num_responses": len(learned), "num_tokens": sum(len(self.source.tokens(each)) for each in learned)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueView(_WholeView):
    """Preference pairs for a value model. Attributes: see `PairView`; `kept` and `doubt` are not used."""

    takes: ClassVar[type[AnyObjective]] = Value

    objective: Value

    def policy(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> ValueRows:
        """The rows of a batch of these groups, which hold values (`vidalign.model.value_head.ValueScorer`), and their outcomes."""
        signs = [1.0 if each.role == "chosen" else -1.0 for each in by_rows(groups)]
        outcomes = torch.tensor(signs, device=rows.logps.device)
        return ValueRows(values=rows.logps, mask=rows.mask, outcomes=outcomes)

    def reference(self, rows: RowLogps, groups: Sequence[TrainingGroup]) -> None:
        """None: there is no reference."""
        return None

    def denominators(self, groups: Sequence[TrainingGroup]) -> dict[str, int]:
        """The denominator of a step on these groups, as the objective's keyword argument: the total of the step."""
        return {"num_tokens": sum(len(self.source.tokens(each)) for group in groups for each in group.responses)}


def by_rows(groups: Sequence[TrainingGroup]) -> list[TrainingResponse]:
    """The responses in the order of a batch's rows: the first of every group, then every second one, and so on."""
    return [group.responses[place] for place in range(len(groups[0].responses)) for group in groups]


View: TypeAlias = PairView | GroupView | ValueView
VIEWS: dict[str, type[View]] = {"pairs": PairView, "groups": GroupView}


def view_of(objective: AnyObjective) -> Callable[..., View]:
    """The view that gives an objective what it consumes.

    Raises:
        ConfigError: there is no such view, or it gives its objectives something else than this one takes.
    """
    if objective.consumes not in VIEWS:
        raise ConfigError(
            f"objective.name={objective.name} consumes {objective.consumes}, but training can give an objective only "
            f"{', '.join(VIEWS)}; choose another objective"
        )
    view = ValueView if objective.learns == "value" else VIEWS[objective.consumes]
    if not isinstance(objective, view.takes):
        raise ConfigError(
            f"objective.name={objective.name} consumes {objective.consumes} and is no {view.takes.__name__}; derive it from "
            f"{view.takes.__module__}.{view.takes.__name__}"
        )
    return view
