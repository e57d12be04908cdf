"""Objectives against TRL's own loss code, which is called on trainers constructed without a model or data."""

import collections
import types

import pytest
import torch
from test_objectives import gradients, random_pairs, value_of, with_grad
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer

from vidalign.learning.objectives import build

ACCELERATOR = types.SimpleNamespace(
    device=torch.device("cpu"), gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor
)


def bare(trainer_class, **attributes):
    trainer = object.__new__(trainer_class)
    trainer.accelerator = ACCELERATOR
    for name, value in attributes.items():
        setattr(trainer, name, value)
    return trainer


def trl_dpo_loss(policy, reference, loss_type, beta, label_smoothing=0.0):
    """Loss of `DPOTrainer._compute_loss`, with a model that returns our log-probs and a precomputed reference."""
    width = max(policy.chosen.shape[1], policy.rejected.shape[1])

    def stack(chosen, rejected):
        return torch.cat([torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in (chosen, rejected)])

    mask = stack(policy.chosen_mask.long(), policy.rejected_mask.long())
    logps = torch.where(mask.bool(), stack(policy.chosen, policy.rejected), 0.0)
    blank = torch.zeros_like(logps)
    outputs = types.SimpleNamespace(log_probs=logps, entropy=blank, mean_logits=blank, is_top1=mask.bool())

    def model(**_):
        return outputs

    trainer = bare(
        DPOTrainer,
        model=types.SimpleNamespace(training=False),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _metrics={"eval": collections.defaultdict(list)},
        _total_train_tokens=0,
    )
    completion_mask = torch.nn.functional.pad(mask, (1, 0))  # one prompt token, which predicts the first response token
    inputs = {
        "input_ids": torch.ones_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
        "ref_chosen_logps": reference.chosen_sum,
        "ref_rejected_logps": reference.rejected_sum,
    }
    return trainer._compute_loss(model, inputs, return_outputs=False)


def assert_same_loss_and_gradients(ours, theirs, pairs_ours, pairs_theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(gradients(pairs_ours), gradients(pairs_theirs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "params", "loss_type", "factor"),
    [
        ("dpo", {"beta": 0.3}, "sigmoid", 1.0),
        ("rdpo", {"beta": 0.3, "label_smoothing": 0.2}, "robust", 1.0),
        ("ipo", {"beta": 0.4}, "ipo", 1.0),
        ("sppo", {"beta": 0.5}, "sppo_hard", 0.5),  # TRL leaves out the paper's one half
        ("sft", {"sft_weight": 0.7}, "sft", 0.7),
    ],
)
def test_matches_dpo_trainer(name, params, loss_type, factor, dtype):
    policy, reference = random_pairs(dtype=dtype)
    ours, theirs = with_grad(policy), with_grad(policy)
    beta, smoothing = params.get("beta", 0.1), params.get("label_smoothing", 0.0)
    expected = factor * trl_dpo_loss(theirs, reference, loss_type, beta, smoothing)
    assert_same_loss_and_gradients(value_of(name, params, ours, reference), expected, ours, theirs)


def test_mpo_at_its_first_step_is_trl_s_mixture():
    """InternVL's weights of sigmoid, bco_pair and sft; TRL's bco_pair has no shift, and the first step none yet."""
    policy, reference = random_pairs()
    ours, theirs = with_grad(policy), with_grad(policy)
    parts = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    expected = sum(weight * trl_dpo_loss(theirs, reference, name, 0.3) for name, weight in parts.items())
    assert_same_loss_and_gradients(value_of("mpo", {"beta": 0.3}, ours, reference), expected, ours, theirs)


def test_dpo_with_sft_weight_matches_trl_mixture():
    policy, reference = random_pairs()
    expected = trl_dpo_loss(policy, reference, "sigmoid", 0.1) + 0.6 * trl_dpo_loss(policy, reference, "sft", 0.1)
    torch.testing.assert_close(value_of("dpo", {"sft_weight": 0.6}, policy, reference), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo_matches_cpo_trainer(smoothing, dtype):
    policy, _ = random_pairs(dtype=dtype)
    ours, theirs = with_grad(policy), with_grad(policy)
    trainer = bare(CPOTrainer, alpha=0.0, loss_type="simpo", simpo_gamma=0.6, beta=2.2, label_smoothing=smoothing)
    losses, chosen_rewards, rejected_rewards = trainer.cpo_loss(theirs.chosen_avg, theirs.rejected_avg)
    loss = build("simpo", {"beta": 2.2, "margin": 0.6, "label_smoothing": smoothing})(ours)
    torch.testing.assert_close(loss.metrics["margin"], (chosen_rewards - rejected_rewards).mean())
    assert_same_loss_and_gradients(loss.value, losses.mean(), ours, theirs)


def test_cdpo_matches_cpo_trainers_conservative_loss():
    policy, reference = random_pairs()
    ours, theirs = with_grad(policy), with_grad(policy)
    trainer = bare(CPOTrainer, alpha=0.0, loss_type="sigmoid", beta=0.3, label_smoothing=0.2)
    losses, _, _ = trainer.cpo_loss(theirs.chosen_sum - reference.chosen_sum, theirs.rejected_sum - reference.rejected_sum)
    value = value_of("cdpo", {"beta": 0.3, "label_smoothing": 0.2}, ours, reference)
    assert_same_loss_and_gradients(value, losses.mean(), ours, theirs)


def test_orpo_matches_orpo_trainer():
    policy, _ = random_pairs(dtype=torch.float32)
    ours, theirs = with_grad(policy), with_grad(policy)
    trainer = bare(ORPOTrainer, beta=0.3)
    losses, _, _, _, log_odds = trainer.odds_ratio_loss(theirs.chosen_avg, theirs.rejected_avg)
    loss = build("orpo", {"odds_weight": 0.3, "sft_weight": 0.0})(ours)
    torch.testing.assert_close(loss.metrics["log_odds_ratio"], log_odds)
    assert_same_loss_and_gradients(loss.value, -losses.mean(), ours, theirs)
