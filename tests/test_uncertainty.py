"""Doubt about preferences: small where a rule separates the two sides, large where it says that the order is wrong."""

import math

import pytest
import torch

from pipelines.stages.doubt import DoubtStage, estimate_doubt
from vidalign import files
from vidalign.config.training import UncertaintyConfig
from vidalign.learning.uncertainty import Doubt, calibrate, draw, entropy, estimate, likelihood_features, wrong_order
from vidalign.model.tensor_cache import write_tensors
from vidalign.types import stable_hash

OPTIONS = {"num_passes": 10, "dropout": 0.1, "seed": 0}


def features(num_pairs, *, flipped=0, gap=1.5, seed=0):
    """(hidden [P, 2, 16], likelihood [P, 2, 3]): the better response is likelier by about `gap` deviations.

    The first `flipped` pairs are the wrong way round. Hidden features say nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_pairs, 2, 16, generator=generator)
    likelihood = torch.randn(num_pairs, 2, 3, generator=generator)
    likelihood[:, 0] += gap
    likelihood[:flipped] = likelihood[:flipped].flip(1)
    return hidden, likelihood


def auc(values, flipped):
    """The probability that a flipped pair (the first ones) has a larger value than a clean one."""
    return float((values[:flipped, None] > values[None, flipped:]).float().mean())


def test_flipped_pairs_get_clearly_more_smoothing():
    doubt = estimate(*features(240, flipped=48), **OPTIONS)
    smoothing = doubt.smoothing(0.3)
    assert auc(doubt.wrong, 48) > 0.9
    assert smoothing[:48].mean() > 0.2
    assert smoothing[48:].mean() < 0.1
    assert 0.12 < doubt.noise < 0.3
    assert (doubt.vote[:48] < 0.5).float().mean() > 0.75
    assert auc(doubt.bald, 48) < 0.75  # why smoothing does not go by B


def test_clean_labels_are_hardly_smoothed():
    doubt = estimate(*features(240), **OPTIONS)
    assert doubt.noise < 0.05
    assert doubt.smoothing(0.3).mean() < 0.03


def test_hidden_features_count_too():
    hidden, likelihood = features(240)
    hidden[:, 0, :4] += 2.0
    doubt = estimate(hidden, torch.zeros_like(likelihood), **OPTIONS)
    assert (doubt.vote > 0.5).float().mean() > 0.95


def test_pairs_that_the_heads_hardly_separate_are_drawn_as_doubtful():
    hidden, likelihood = features(160, gap=4.0)
    likelihood[:40, 1] = likelihood[:40, 0]
    doubt = estimate(hidden, likelihood, num_passes=20, dropout=0.3, seed=0)
    assert doubt.bald[:40].mean() > 2 * doubt.bald[40:].mean()
    assert ((doubt.bald >= 0) & (doubt.bald <= math.log(2))).all()


def test_slope_and_noise_are_found_again():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4000, generator=generator).abs() * 3
    better = torch.rand(4000, generator=generator) < torch.sigmoid(2.0 * z)  # as the heads are calibrated
    gaps = torch.where(better, z, -z)
    flip = torch.rand(4000, generator=generator) < 0.15
    slope, noise = calibrate(torch.where(flip, -gaps, gaps)[None])
    assert slope == pytest.approx(2.0, rel=0.35)
    assert noise == pytest.approx(0.15, abs=0.03)


def test_wrong_order_by_hand():
    # of 100 orders 20 are wrong; q = 0.1: 0.2 * 0.9 / (0.2 * 0.9 + 0.8 * 0.1)
    assert wrong_order(torch.tensor([0.1, 0.5, 1.0]), 0.2).tolist() == pytest.approx([0.18 / 0.26, 0.2, 0.0])


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
    doubt = estimate(*features(3), **OPTIONS)
    assert doubt.bald.tolist() == pytest.approx([math.log(2)] * 3)
    assert doubt.smoothing(0.3).tolist() == pytest.approx([0.3] * 3)


def test_smoothing_stays_at_its_maximum_below_one_half():
    doubt = Doubt(torch.zeros(3), torch.full((3,), 0.6), torch.tensor([0.05, 0.3, 0.9]), 0.2)
    assert doubt.smoothing(0.4).tolist() == pytest.approx([0.05, 0.3, 0.4])
    with pytest.raises(AssertionError):
        doubt.smoothing(0.5)


def test_half_of_a_draw_is_certain_and_half_is_doubtful():
    bald = torch.tensor([0.0] * 50 + [math.log(2)] * 50)
    drawn = draw(bald, 20, seed=3)
    assert drawn == sorted(set(drawn)) == draw(bald, 20, seed=3) != draw(bald, 20, seed=4)
    assert sum(at < 50 for at in drawn) == sum(at >= 50 for at in drawn) == 10
    assert draw(bald, 100, seed=0) == list(range(100))
    assert len(draw(bald, 1, seed=0)) == 1


def test_entropy_and_likelihood_features_by_hand():
    assert entropy(torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0.0, math.log(2), 0.0])
    assert likelihood_features(torch.tensor([-1.0, -3.0])).tolist() == [-2.0, -4.0, -3.0]


@pytest.mark.parametrize(
    ("options", "left"), [({}, None), ({"drop_disagreeing": False}, 60), ({"sampled_share": 0.5}, None)]
)
def test_the_stage_smooths_draws_and_counts(tmp_path, options, left):
    hidden, likelihood = features(60, flipped=12, gap=4.0)
    paths = {}
    for at in range(60):
        paths[f"p{at}"] = str(tmp_path / f"{at}.safetensors")
        logps = {side: likelihood[at, number] for number, side in enumerate(("chosen", "rejected"))}
        write_tensors(tmp_path / f"{at}.safetensors", {"features": hidden[at], **logps})
    files.write_json(tmp_path / "kept.json", paths)
    smoothing, facts = estimate_doubt(
        str(tmp_path / "kept.json"), list(paths), UncertaintyConfig(max_smoothing=0.3, **options), 0
    )
    assert len(smoothing) == 60 - sum(facts["dropped"].values())
    assert facts["dropped"]["not_drawn"] == (len(smoothing) if "sampled_share" in options else 0)
    if left is None:
        assert facts["dropped"]["voted_against"] >= 10
    else:
        assert len(smoothing) == left
        flipped, clean = ([smoothing[f"p{at}"] for at in places] for places in (range(12), range(12, 60)))
        assert sum(flipped) / 12 > 0.25
        assert sum(clean) / 48 < 0.1


def test_a_run_that_was_moved_or_is_older_keeps_its_doubt(tmp_path):
    def stage(root):
        return DoubtStage(
            folder=root / "rounds/0/doubt",
            uncertainty=UncertaintyConfig(),
            reference=root / "rounds/0/reference/files.json",
            pair_ids=["p"],
            seed=0,
        )

    run, moved = tmp_path / "run", tmp_path / "moved"
    whole = {"p": str(run / "cache/reference/ab/abc.safetensors")}
    files.write_places(run / "rounds/0/reference/files.json", whole)
    assert str(tmp_path) not in (run / "rounds/0/reference/files.json").read_text()
    before = stage(run).inputs()
    run.rename(moved)
    assert stage(moved).inputs() == before
    assert files.read_places(stage(moved).reference) == {"p": str(moved / "cache/reference/ab/abc.safetensors")}
    moved.rename(run)
    older = stable_hash(whole)  # of a run that kept whole paths
    files.write_json(stage(run).folder / "begun.json", {"format": 2, "inputs": {"reference": older}})
    assert stage(run).inputs()["reference"] == older != before["reference"]
