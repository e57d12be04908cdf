"""Doubt about preferences: small where a rule separates the two sides, larger where it hardly does."""

import math

import pytest
import torch

from vidalign.learning.uncertainty import Doubt, entropy, estimate


def features(num_pairs, *, flipped=0, seed=0):
    """Chosen has more of the first feature, except in the first `flipped` pairs."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = (torch.randn(num_pairs, 6, generator=generator) for _ in range(2))
    chosen[:, 0], rejected[:, 0] = chosen[:, 0].abs() + 1, -rejected[:, 0].abs() - 1
    order = torch.arange(num_pairs)[:, None] < flipped
    return torch.where(order, rejected, chosen), torch.where(order, chosen, rejected)


def test_pairs_against_the_rule_are_voted_down():
    doubt = estimate(*features(120, flipped=12), num_passes=10, dropout=0.1, seed=0)
    assert (doubt.vote[:12] < 0.5).all()
    assert (doubt.vote[12:] > 0.5).float().mean() > 0.95


def test_pairs_that_the_rule_hardly_separates_are_more_doubtful_than_clear_ones():
    chosen, rejected = features(160)
    chosen[:40, 0], rejected[:40, 0] = 0.02, -0.02
    doubt = estimate(chosen, rejected, num_passes=20, dropout=0.3, seed=0)
    assert doubt.bald[:40].mean() > 2 * doubt.bald[40:].mean()
    assert ((doubt.bald >= 0) & (doubt.bald <= math.log(2))).all()


def test_equal_arguments_give_equal_doubt_and_leave_the_generator_alone():
    torch.manual_seed(5)
    first = estimate(*features(20), num_passes=3, dropout=0.2, seed=1)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
    again = estimate(*features(20), num_passes=3, dropout=0.2, seed=1)
    assert torch.equal(first.bald, again.bald)
    assert not torch.equal(first.bald, estimate(*features(20), num_passes=3, dropout=0.2, seed=2).bald)


def test_too_few_pairs_are_wholly_doubtful():
    doubt = estimate(*features(3), num_passes=3, dropout=0.1, seed=0)
    assert doubt.bald.tolist() == pytest.approx([math.log(2)] * 3)


def test_smoothing_grows_with_doubt_and_stays_below_one_half():
    doubt = Doubt(torch.tensor([0.0, 0.1, math.log(2)]), torch.full((3,), 0.6))
    smoothing = doubt.smoothing(0.4)
    assert smoothing.tolist() == pytest.approx([0.0, 0.4 * 0.1 / math.log(2), 0.4])
    with pytest.raises(AssertionError):
        doubt.smoothing(0.5)


def test_entropy_by_hand():
    assert entropy(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.0, math.log(2), 0.0])
