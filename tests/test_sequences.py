"""Training by responses: groups from pairs and examples, their batches, the view of pairs, and an objective from outside."""

import dataclasses
import sys

import pytest
import torch
from test_reference import computed, groups, pairs, prepared, source  # noqa: F401 (fixtures)

from vidalign.errors import ConfigError
from vidalign.learning import objectives
from vidalign.learning.sequences import TrainingResponse, pair_group, truth_group
from vidalign.learning.views import VIEWS, PairView, view_of
from vidalign.model import shared_prefix
from vidalign.model.batch import IGNORED
from vidalign.model.logps import PairLogps, RowLogps
from vidalign.model.policy import ResponseScorer, load_policy, set_trainable
from vidalign.types import Example


def scored(scorer, batch, hidden=None):
    logps, kl, _ = scorer(batch.inputs, batch.labels, hidden, batch.sources)
    return RowLogps(logps=logps, mask=batch.labels != IGNORED, kl=kl)


def test_a_pair_is_a_group_of_two_and_a_ground_truth_one_of_one(pairs):  # noqa: F811
    group = pair_group(pairs[0])
    assert (group.id, group.video, group.question) == (pairs[0].id, pairs[0].video, pairs[0].question)
    assert [(each.role, each.text, each.group) for each in group.responses] == [
        ("chosen", pairs[0].chosen, group.id),
        ("rejected", pairs[0].rejected, group.id),
    ]
    assert [each.marks for each in group.responses] == [pairs[0].chosen_marks, pairs[0].rejected_marks]
    assert [each.role for each in pair_group(dataclasses.replace(pairs[0], rejected="")).responses] == ["chosen"]
    assert [each.role for each in group.only("rejected").responses] == ["rejected"]
    truth = truth_group(Example(id="e", video="v", question="Q?", answer="A"))
    assert [(each.role, each.text) for each in truth.responses] == [("truth", "A")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_takes_any_number_of_responses_as_text_or_tokens(prepared, source, groups, packed):  # noqa: F811
    """Groups of three members: rows are the first of every group, then the second, then the third."""
    model = load_policy(prepared[0])
    number = shared_prefix.numbering(model) if packed else None
    source = dataclasses.replace(source, number=number, _kept={})
    scorer = ResponseScorer(model, packed=packed).eval()
    threes = []
    for group in groups[:2]:
        texts = [*(each.text for each in group.responses), "Yes, there is."]
        members = [TrainingResponse(group=group.id, role="member", text=text) for text in texts]
        sampled = TrainingResponse(group=group.id, role="member", token_ids=source.tokens(members[2]))
        threes.append(dataclasses.replace(group, responses=(*members[:2], sampled)))
    with torch.no_grad():
        rows = scored(scorer, source.batch(threes))
        alone = [
            scored(scorer, source.batch([dataclasses.replace(group, responses=(group.responses[side],))]))
            for side in range(3)
            for group in threes
        ]
    assert rows.logps.shape[0] == 6
    for row, single in enumerate(alone):
        torch.testing.assert_close(rows.logps[row][rows.mask[row]], single.logps[0][single.mask[0]], atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.avg, torch.cat([single.avg for single in alone]), atol=1e-5, rtol=0)


def test_a_batch_of_unequal_groups_is_a_fault(source, groups):  # noqa: F811
    with pytest.raises(AssertionError, match=r"\[2, 1\]"):
        source.batch([groups[0], groups[1].only("chosen")])


def test_what_does_not_fit_together_in_a_response_is_a_fault():
    with pytest.raises(AssertionError, match="marks"):
        TrainingResponse(group="g", role="chosen", text="a b", token_ids=(1, 2), marks=((0, 1),))
    with pytest.raises(AssertionError, match="behaviour"):
        TrainingResponse(group="g", role="member", token_ids=(1, 2), behaviour_logps=(-1.0,))


def test_the_view_on_pairs_takes_chosen_rows_first():
    logps, mask = torch.arange(8.0).view(4, 2), torch.tensor([[True, True], [True, False]] * 2)
    rows = RowLogps(logps=logps, mask=mask, kl=torch.arange(4.0), phrases=logps.long())
    pair = PairLogps.from_rows(rows, num_pairs=2, doubt=torch.zeros(2))
    assert pair.chosen.tolist() == [[0, 1], [2, 3]]
    assert pair.rejected.tolist() == [[4, 5], [6, 7]]
    assert pair.rejected_mask.tolist() == mask[2:].tolist()
    assert pair.chosen_kl.tolist() == [0, 1]
    assert pair.rejected_phrases.tolist() == [[4, 5], [6, 7]]
    assert pair.chosen.data_ptr() == logps.data_ptr()
    one_sided = PairLogps.from_rows(rows, num_pairs=4)
    assert one_sided.chosen.shape == (4, 2)
    assert one_sided.rejected.shape == one_sided.rejected_mask.shape == one_sided.rejected_phrases.shape == (4, 0)
    with pytest.raises(AssertionError, match="4 rows of 3 pairs"):
        PairLogps.from_rows(rows, num_pairs=3)


@pytest.mark.parametrize("name", ["leanpo", "dpo", "rrpo", "expo", "sft"])
def test_a_view_gives_what_its_objective_asks_for(name, prepared, source, groups, computed):  # noqa: F811
    """The policy is the reference here, so log-ratios and KL are 0."""
    objective = objectives.build(name, {})
    view = PairView(objective=objective, source=source, kept=lambda group: computed[group])
    scorer = ResponseScorer(load_policy(prepared[0]), compares=objective.needs_kl).eval()
    batch = source.batch([view.sequences(group) for group in groups])
    assert len(batch.labels) == (6 if objective.needs_rejected else 3)
    with torch.no_grad():
        rows = scored(scorer, batch, view.reference_hidden(groups))
    policy, reference = view.policy(rows, groups), view.reference(rows, groups)
    assert (reference is not None) == objective.needs_reference
    if reference is not None:
        torch.testing.assert_close(reference.chosen, policy.chosen, atol=1e-5, rtol=0)
        torch.testing.assert_close(reference.rejected, policy.rejected, atol=1e-5, rtol=0)
    if objective.needs_kl:
        assert policy.chosen_kl is not None
        assert policy.chosen_kl.abs().max() < 1e-4
    if objective.needs_phrases:
        assert policy.chosen_phrases is not None
        ids = source.phrases(groups)
        assert [row[mask].tolist() for row, mask in zip(policy.chosen_phrases, policy.chosen_mask, strict=True)] == [
            list(each) for each in ids[:3]
        ]
    assert view.denominators(groups) == {"num_pairs": 3, "num_chosen_tokens": int(policy.chosen_mask.sum())}


def test_doubt_is_that_of_each_pair(prepared, source, groups):  # noqa: F811
    doubt = {"p0": 0.1, "p1": 0.2, "p2": 0.3}
    view = PairView(objective=objectives.build("cdpo", {}), source=source, kept={}.__getitem__, doubt=doubt)
    rows = RowLogps(logps=torch.zeros(4, 1), mask=torch.ones(4, 1, dtype=torch.bool))
    shown = view.policy(rows, [groups[2], groups[0]]).doubt
    assert shown is not None
    assert shown.tolist() == pytest.approx([0.3, 0.1])


OUTSIDE = '''
import dataclasses
from typing import ClassVar

import torch

from vidalign.learning.objectives.base import Objective, Preference, param


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hinge(Objective):
    """max(0, width - (average chosen - average rejected))."""

    name: ClassVar[str] = "hinge"

    width: float = param(5.0, gt=0)

    def preference(self, policy, reference, state):
        gap = policy.chosen_avg - policy.rejected_avg
        return Preference(
            losses=torch.relu(self.width - gap), chosen_reward=policy.chosen_avg, rejected_reward=policy.rejected_avg
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnGroups(Hinge):
    name: ClassVar[str] = "on_groups"
    consumes: ClassVar[str] = "groups"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnTriples(Hinge):
    name: ClassVar[str] = "on_triples"
    consumes: ClassVar[str] = "triples"


NUMBER = 3
'''


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A module of somebody else's, with objectives."""
    (tmp_path / "somebodys_objectives.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "somebodys_objectives"
    sys.modules.pop("somebodys_objectives", None)


def test_an_objective_from_another_package_trains(outside, prepared, source, groups):  # noqa: F811
    """One file, named `module:attribute`: two steps on the CPU, and the second one's loss is lower."""
    objective = objectives.build(f"{outside}:Hinge", {"width": 4.0})
    view = view_of(objective)(objective=objective, source=source, kept={}.__getitem__)
    model = load_policy(prepared[0])
    set_trainable(model, vision_tower=False, projector=False)
    scorer = ResponseScorer(model).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        rows = scored(scorer, source.batch([view.sequences(group) for group in groups]))
        loss = objective(view.policy(rows, groups), view.reference(rows, groups), **view.denominators(groups))
        optimizer.zero_grad()
        loss.value.backward()
        optimizer.step()
        losses.append(float(loss.value.detach()))
    assert losses[1] < losses[0] - 0.1
    assert {"margin", "accuracy"} <= loss.metrics.keys()


def test_an_objective_that_training_cannot_serve_is_refused(outside):
    with pytest.raises(ConfigError, match=r"objective.name=on_triples consumes triples, .* can give .* only pairs, groups"):
        view_of(objectives.build(f"{outside}:OnTriples", {}))
    with pytest.raises(
        ConfigError, match=r"objective.name=on_groups consumes groups and is no GroupObjective; derive it from"
    ):
        view_of(objectives.build(f"{outside}:OnGroups", {}))
    with pytest.raises(ConfigError, match=r"objective.name=somebodys_objectives:NUMBER is 3; name a subclass of"):
        objectives.build(f"{outside}:NUMBER", {})
    with pytest.raises(ConfigError, match=r"objective\.params\.wdth of somebodys_objectives:Hinge; did you mean width\?"):
        objectives.build(f"{outside}:Hinge", {"wdth": 1.0})
    with pytest.raises(ConfigError, match="did you mean somebodys_objectives:Hinge"):
        objectives.build(f"{outside}:Hinges", {})


def test_every_objective_of_the_table_has_a_view():
    assert {kind.consumes for kind in objectives.OBJECTIVES.values()} <= VIEWS.keys()
