"""Displacement while training, with a rank that has no engine around its model."""

import dataclasses

import pytest
import torch
from test_reference import groups, pairs, prepared, source  # noqa: F401 (fixtures)

from actors.monitor import Monitor
from vidalign.learning.sequences import truth_group
from vidalign.model.batch import IGNORED
from vidalign.model.logps import RowLogps
from vidalign.model.policy import ResponseScorer, load_policy
from vidalign.types import Example


class ModelAlone:
    """What a monitor asks of `actors.rank.Rank`, of one rank of `count` whose sums are collected in `total`."""

    device = torch.device("cpu")

    def __init__(self, scorer, index=0, count=1):
        self.scorer, self.index, self.count = scorer, index, count
        self.num_forwards, self.summed = 0, []

    def train(self, mode=True):
        self.scorer.train(mode)

    def logps(self, batch):
        self.num_forwards += 1
        logps, *_ = self.scorer(batch.inputs, batch.labels, None, batch.sources)
        return RowLogps(logps=logps, mask=batch.labels != IGNORED)

    def add_up(self, *values):
        self.summed += [value.clone() for value in values]


@pytest.fixture
def scorer(prepared):  # noqa: F811
    return ResponseScorer(load_policy(prepared[0]))


@pytest.fixture
def probe():
    return [truth_group(Example(id="e", video="a", question="Describe the video.", answer="A red circle moves left."))]


def by_hand(scorer, source, group):  # noqa: F811
    with torch.no_grad():
        return ModelAlone(scorer).logps(source.batch([group])).avg.tolist()


def test_figures_are_against_step_0(scorer, source, groups, probe):  # noqa: F811
    monitor = Monitor(ModelAlone(scorer), source, pairs=groups, probe=probe, size=2)
    first = monitor.measure(0)
    before = torch.tensor([by_hand(scorer, source, group) for group in groups])
    assert first["chosen_logp"] == pytest.approx(float(before[:, 0].mean()), abs=1e-5)
    assert first["rejected_logp"] == pytest.approx(float(before[:, 1].mean()), abs=1e-5)
    assert first["truth_logp"] == pytest.approx(by_hand(scorer, source, probe[0])[0], abs=1e-5)
    assert first["chosen_change"] == first["truth_change"] == 0
    with torch.no_grad():
        for parameter in scorer.model.get_output_embeddings().parameters():
            parameter *= 0.5
    after = torch.tensor([by_hand(scorer, source, group) for group in groups])
    later = monitor.measure(1)
    assert later["chosen_change"] == pytest.approx(float((after - before)[:, 0].mean()), abs=1e-5)
    assert later["margin_change"] == pytest.approx(
        float((after - before)[:, 0].mean() - (after - before)[:, 1].mean()), abs=1e-5
    )
    assert later["truth_change"] != 0


def test_of_chosen_responses_alone_there_is_no_margin(scorer, source, groups):  # noqa: F811
    monitor = Monitor(ModelAlone(scorer), source, pairs=[group.only("chosen") for group in groups], probe=[], size=2)
    assert monitor.measure(0).keys() == {"chosen_logp", "chosen_change", "chosen_fell"}


def test_the_gap_to_what_sampled_is_measured_once(scorer, source, groups):  # noqa: F811
    """The best and worst responses of a group, sampled with log-probs that are 0.25 nats a token below the policy's."""
    watched = []
    for group in groups:
        sampled = []
        for response, average in zip(group.responses, by_hand(scorer, source, group), strict=True):
            ids = tuple(source.tokens(response))
            below = (average - 0.25,) * len(ids)
            sampled.append(dataclasses.replace(response, marks=(), token_ids=ids, behaviour_logps=below))
        watched.append(dataclasses.replace(group, responses=tuple(sampled)))
    monitor = Monitor(ModelAlone(scorer), source, pairs=watched, probe=[], size=2)
    assert monitor.measure(0)["behaviour_gap"] == pytest.approx(0.25, abs=1e-5)
    assert "behaviour_gap" not in monitor.measure(1)
    assert "behaviour_gap" not in Monitor(ModelAlone(scorer), source, pairs=groups, probe=[], size=2).measure(0)


def test_ranks_share_the_groups(scorer, source, groups, probe):  # noqa: F811
    whole, shares = ModelAlone(scorer), [ModelAlone(scorer, index, 2) for index in range(2)]
    for rank in (whole, *shares):
        Monitor(rank, source, pairs=groups, probe=probe, size=1).measure(0)
    assert [rank.num_forwards for rank in (whole, *shares)] == [4, 3, 3]
    for table, *parts in zip(*(rank.summed for rank in (whole, *shares)), strict=True):
        torch.testing.assert_close(sum(parts), table, atol=1e-5, rtol=0)
