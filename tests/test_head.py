"""The output layer in float32: exact products, gradients as autograd has them, and alike for training, reference and engine."""

import copy
import math

import pytest
import torch
import transformers
from test_shared_prefix import ARCHITECTURES

from cluster.engines import with_float32_head
from vidalign.config.run import ModelConfig
from vidalign.config.training import TrainConfig
from vidalign.errors import ModelError
from vidalign.model import head
from vidalign.model.batch import collate
from vidalign.model.logps import forward_kl, token_logps
from vidalign.model.policy import ResponseScorer, load_policy, outline_policy


def layer(bias, vocabulary=50):
    torch.manual_seed(0)
    return torch.nn.Linear(16, vocabulary, bias=bias, dtype=torch.bfloat16)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block", [7, 50, 1000])
def test_logits_and_gradients_are_those_of_float32(monkeypatch, bias, block):
    monkeypatch.setattr(head, "BLOCK", block)
    made = layer(bias)
    rows = torch.randn(5, 16).bfloat16().requires_grad_(True)
    wide = torch.nn.Linear(16, 50, bias=bias)
    with torch.no_grad():
        for ours, theirs in zip(wide.parameters(), made.parameters(), strict=True):
            ours.copy_(theirs)
    wide_rows = rows.detach().float().requires_grad_(True)
    head.compute_in_float32(made)
    logits, expected = made(rows), wide(wide_rows)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    assert made.weight.grad.dtype == rows.grad.dtype == torch.bfloat16
    torch.testing.assert_close(rows.grad.float(), wide_rows.grad, rtol=1e-2, atol=1e-3)
    for ours, theirs in zip(made.parameters(), wide.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=1e-2, atol=1e-3)


def test_a_float32_layer_is_left_alone():
    made = torch.nn.Linear(4, 4)
    before = made.forward
    head.compute_in_float32(made)
    assert made.forward == before


def test_a_copy_is_a_layer_of_its_own():
    """The frozen copy of the output layer that a KL compares with."""
    made = layer(False)
    head.compute_in_float32(made)
    frozen = copy.deepcopy(made)
    with torch.no_grad():
        made.weight.zero_()
    rows = torch.randn(3, 16).bfloat16()
    assert not frozen(rows).eq(0).all()
    assert made(rows).eq(0).all()


@pytest.mark.parametrize("compares", [False, True])
def test_a_scorer_scores_in_float32(model_path, compares):
    model = load_policy(ModelConfig(path=model_path, dtype="bfloat16"))
    rounded = ResponseScorer(copy.deepcopy(model), compares=compares).eval()
    exact = ResponseScorer(model, float32_head=True, compares=compares).eval()
    torch.manual_seed(0)
    hidden = torch.randn(40, model.config.get_text_config().hidden_size).bfloat16() * 3
    tokens = torch.randint(0, 100, (40,))
    expected = token_logps(hidden, model.get_output_embeddings().weight, tokens)
    with torch.no_grad():
        torch.testing.assert_close(exact.score(hidden, tokens), expected, rtol=0, atol=1e-5)
        assert (rounded.score(hidden, tokens) - expected).abs().max() > 1e-3


def test_training_and_reference_agree(monkeypatch):
    """A whole forward pass, with gradients and without, gives the same log-probs."""
    model, prompts = ARCHITECTURES["qwen2_5_vl"]()
    scorer = ResponseScorer(model.bfloat16(), float32_head=True).train()
    batch = collate([(prompt, [20, 21, 22, 1]) for prompt in prompts], pad_id=0).to(torch.device("cpu"), torch.bfloat16)
    trained, *_ = scorer(batch.inputs, batch.labels)
    trained.sum().backward()
    with torch.inference_mode():
        hidden = scorer.hidden(batch.inputs, batch.labels)
        scored = scorer.score(hidden, batch.labels[batch.labels >= 0])
    assert torch.equal(trained.detach()[batch.labels >= 0], scored)
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0


def test_the_engine_is_told_and_the_user_has_the_last_word():
    assert with_float32_head({}) == {"hf_overrides": {"head_dtype": "float32"}}
    given = {"seed": 1, "hf_overrides": {"a": 1, "head_dtype": "model"}}
    assert with_float32_head(given) == given


def test_runs_from_before_the_option_stay_valid():
    assert "float32_head" not in TrainConfig().deciding()
    assert TrainConfig(float32_head=True).deciding()["float32_head"] is True


def test_what_comes_after_the_output_layer_by_hand():
    logits = torch.tensor([[0.0, 4.0, -8.0, 2.0]], dtype=torch.bfloat16)
    expected = [0.0, 4 * math.tanh(1), 4 * math.tanh(-2), head.NEVER]
    assert head.Finish(softcap=4.0, suppressed=(3,))(logits)[0].tolist() == pytest.approx(expected)
    layer = torch.nn.Linear(2, 3)
    assert head.finished_logits(layer, head.Finish()) is layer


def test_a_kl_of_logits_some_of_which_are_never_said_is_a_number():
    finished = head.finished_logits(layer(False), head.Finish(softcap=4.0, suppressed=(3, 7)))
    torch.manual_seed(1)
    rows, others = (torch.randn(5, 16).bfloat16().requires_grad_(True) for _ in range(2))
    assert forward_kl(rows, rows.detach(), finished, finished).abs().max() < 1e-6
    found = forward_kl(rows, others.detach(), finished, finished)
    found.sum().backward()
    assert found.min() > 0
    assert rows.grad.isfinite().all()


def test_logits_that_are_scaled_are_refused():
    config = transformers.Qwen2Config(logits_scaling=1.0)
    head.check_logits(config)
    config.logits_scaling = 8.0
    with pytest.raises(ModelError, match=r"a qwen2 scales its logits \(logits_scaling=8.0 "):
        head.check_logits(config)


def test_ranks_that_are_sent_the_weights_know_what_is_never_said(checkpoints):
    config = ModelConfig(path=checkpoints("gemma4"), dtype="float32")
    finish = head.finish_of(load_policy(config))
    assert len(finish.suppressed) == 3
    assert head.finish_of(outline_policy(config)) == finish
