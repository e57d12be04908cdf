"""A pair in one sequence gives what two sequences give: log-probs, gradients, KL; and computes the prompt once."""

import types

import pytest
import torch
from test_reference import prepared, source  # noqa: F401 (fixtures)

from vidalign import shared_prefix
from vidalign.config import TrainConfig
from vidalign.policy import ResponseScorer, add_adapter, load_policy, set_trainable
from vidalign.rendering import IGNORED

INDICES = [0, 1, 2]


def scorer(model_config, *, lora=False, checkpointing=False):
    model = load_policy(model_config)
    if lora:
        torch.manual_seed(0)
        model = add_adapter(model, TrainConfig(lora={"rank": 4, "alpha": 8}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    else:
        set_trainable(model, vision_tower=True, projector=True)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    return ResponseScorer(model).train()


def flat_logps(model, batch):
    logps, _ = model(batch.inputs, batch.labels, None, batch.sources)
    return logps[batch.labels != IGNORED]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_and_gradients_are_those_of_separate_sequences(prepared, source, lora, checkpointing):  # noqa: F811
    found = []
    for shared in (False, True):
        model = scorer(prepared[0], lora=lora, checkpointing=checkpointing)
        logps = flat_logps(model, source.batch(INDICES, shared=shared))
        weights = torch.linspace(-1, 1, len(logps))  # chosen and rejected pull in different directions
        (logps * weights).sum().backward()
        found.append((logps.detach(), gradients(model)))
    (separate, one), (shared, other) = found
    torch.testing.assert_close(shared, separate, atol=1e-5, rtol=0)
    assert one.keys() == other.keys()
    assert one
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-4 * float(gradient.abs().max() + 1e-6))


def test_prompt_and_video_stand_in_a_sequence_once(source):  # noqa: F811
    separate, shared = source.batch(INDICES), source.batch(INDICES, shared=True)
    assert len(separate.inputs["input_ids"]) == 6
    assert len(shared.inputs["input_ids"]) == 3
    for name in ("pixel_values_videos", "video_grid_thw"):
        assert 2 * len(shared.inputs[name]) == len(separate.inputs[name])
    assert (shared.labels != IGNORED).sum(-1).tolist() == (separate.labels != IGNORED).sum(-1).tolist()


def test_rejected_does_not_see_chosen_and_starts_where_chosen_does():
    segments = torch.tensor([[0, 0, 1, 1, 1, 2, 2, -1]])
    mask = shared_prefix.attention_mask(segments)[0, 0]
    assert mask[5].tolist() == [True, True, False, False, False, True, False, False]
    assert mask[4].tolist() == [True, True, True, True, True, False, False, False]
    assert mask.any(-1).all()
    backbone = types.SimpleNamespace(  # a video that spans more positions than tokens: text goes on 3 further
        get_rope_index=lambda ids, **_: (torch.arange(8).expand(3, 1, 8) + 3, torch.tensor([[3]]))
    )
    inputs = {"input_ids": segments, "mm_token_type_ids": segments}
    positions = shared_prefix.position_ids(inputs, segments, backbone)
    assert positions[:, 0, 2:7].tolist() == [[5, 6, 7, 5, 6]] * 3


def test_without_rejected_responses_there_is_nothing_to_share(source):  # noqa: F811
    batch = source.batch(INDICES, rejected=False, shared=True)
    assert batch.sources is None
    assert len(batch.labels) == 3


def test_an_untested_architecture_is_not_supported(prepared):  # noqa: F811
    model = load_policy(prepared[0])
    assert shared_prefix.is_supported(model)
    model.config.model_type = "llava_onevision"
    assert not shared_prefix.is_supported(model)
